//! The span of a request: an identity in a trace, and with the feature `otlp` what a collector gets of it.

#[cfg(feature = "otlp")]
use crate::server::otlp::Exported;
use crate::server::trace_context::{TraceContext, random};
use axum::extract::Request;
use axum::http::StatusCode;

/// One request. It ends when it is dropped.
pub(super) struct Span {
    context: TraceContext,
    #[cfg(feature = "otlp")]
    exported: Exported,
}

impl Span {
    /// Begins a span under the sender's context, or in a trace of its own.
    #[cfg(not(feature = "otlp"))]
    pub fn start(_: &Request, parent: Option<TraceContext>) -> Self {
        Self { context: TraceContext::child_of(parent, random) }
    }

    /// Begins a span under the sender's context, or in a trace of its own.
    #[cfg(feature = "otlp")]
    pub fn start(request: &Request, parent: Option<TraceContext>) -> Self {
        let exported = Exported::start(request, parent);
        // Without a collector the exporter knows no identity.
        Self { context: exported.context().unwrap_or_else(|| TraceContext::child_of(parent, random)), exported }
    }

    pub fn context(&self) -> TraceContext {
        self.context
    }

    /// What is known at its end: the answer's status, the plan of its images, and whether the client stayed for all of it.
    pub fn ended(&mut self, status: Option<StatusCode>, plan: Option<&str>, stayed: bool) {
        #[cfg(feature = "otlp")]
        self.exported.ended(status, plan, stayed);
        #[cfg(not(feature = "otlp"))]
        let _ = (status, plan, stayed);
    }
}
