//! Spans of requests to an OpenTelemetry collector: OTLP over HTTP, protobuf, without TLS.

use crate::server::trace_context::TraceContext;
use crate::{Error, Result};
use axum::extract::{MatchedPath, Request};
use axum::http::StatusCode;
use opentelemetry::global::{self, BoxedSpan};
use opentelemetry::trace::{
    Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

/// The standard's variables for where the collector listens; the second is for traces alone.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// The way to the collector. What is still under way is sent when it is dropped.
#[derive(Debug)]
pub struct Collector(SdkTracerProvider);

impl Collector {
    /// Sends the spans of all requests from here on to the collector that the environment names, if it names one.
    ///
    /// # Errors
    /// [`Error::Input`] for an endpoint that is no URL.
    pub fn from_env() -> Result<Option<Self>> {
        if ENDPOINTS.iter().all(|name| std::env::var_os(name).is_none_or(|value| value.is_empty())) {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_http().build();
        let exporter = exporter.map_err(|problem| Error::input(ENDPOINTS[0], problem))?;
        // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES outdo the name.
        let resource = Resource::builder().with_service_name("accordion").build();
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        global::set_tracer_provider(provider.clone());
        Ok(Some(Self(provider)))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

/// The span of a request as a collector gets it.
pub(super) struct Exported(BoxedSpan);

impl Exported {
    pub fn start(request: &Request, parent: Option<TraceContext>) -> Self {
        let parent = parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(remote(parent)));
        let tracer = global::tracer("accordion");
        let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
        // The names of OpenTelemetry's conventions for HTTP.
        let mut attributes =
            vec![KeyValue::new("http.request.method", method.clone()), KeyValue::new("url.path", path)];
        let route = request.extensions().get::<MatchedPath>().map(|route| route.as_str().to_owned());
        let name = route.as_ref().map_or_else(|| method.clone(), |route| format!("{method} {route}"));
        attributes.extend(route.map(|route| KeyValue::new("http.route", route)));
        let span = tracer.span_builder(name).with_kind(SpanKind::Server).with_attributes(attributes);
        Self(span.start_with_context(&tracer, &parent))
    }

    /// `None` where nothing is exported.
    pub fn context(&self) -> Option<TraceContext> {
        let context = self.0.span_context();
        context.is_valid().then(|| TraceContext {
            trace: u128::from_be_bytes(context.trace_id().to_bytes()),
            span: u64::from_be_bytes(context.span_id().to_bytes()),
            sampled: context.is_sampled(),
        })
    }

    pub fn ended(&mut self, status: Option<StatusCode>, plan: Option<&str>, stayed: bool) {
        if let Some(status) = status {
            self.0.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        }
        if status.is_some_and(|status| status.is_server_error()) {
            self.0.set_status(Status::error(""));
        }
        if let Some(plan) = plan {
            self.0.set_attribute(KeyValue::new("accordion.plan", plan.to_owned()));
        }
        self.0.set_attribute(KeyValue::new("accordion.client_stayed", stayed));
    }
}

fn remote(parent: TraceContext) -> SpanContext {
    let flags = if parent.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let (trace, span) = (TraceId::from(parent.trace), SpanId::from(parent.span));
    SpanContext::new(trace, span, flags, true, TraceState::default())
}
