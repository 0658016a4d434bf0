//! axum: routes, wire types, error mapping, metrics.
