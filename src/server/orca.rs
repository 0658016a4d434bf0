//! ORCA (gRFC A51, `xds.data.orca.v3.OrcaLoadReport`): the load in the answer, for a balancer that asks in the request.

use crate::server::handover::{Waits, hand_over};
use crate::server::process::Usage;
use crate::server::{AppState, Load};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::sync::Arc;

const ASKED: &str = "endpoint-load-metrics-format";
const ANSWER: &str = "endpoint-load-metrics";
const DEFICIT: &str = "quality_deficit";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Json,
    Bin,
}

impl Format {
    /// What the request asks for; an unknown format is not answered.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let name = headers.get(ASKED)?.to_str().ok()?.trim();
        let known = [("TEXT", Self::Text), ("JSON", Self::Json), ("BIN", Self::Bin)];
        known.into_iter().find_map(|(known, format)| name.eq_ignore_ascii_case(known).then_some(format))
    }
}

/// Adds the load to answers whose request asks for it.
pub(super) async fn report_load(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let format = Format::of(request.headers());
    // Images are all that is posted.
    let is_work = request.method() == Method::POST;
    let mut response = next.run(request).await;
    if let Some(format) = format {
        let report = Report { load: state.load(), usage: state.usage.read() };
        if let Ok(value) = HeaderValue::try_from(report.header(format)) {
            response.headers_mut().insert(ANSWER, value);
        }
    }
    if is_work { hand_over(response, Answered(state)) } else { response }
}

/// Counts an answer of images when all of it has been handed over.
struct Answered(Arc<AppState>);

impl Waits for Answered {
    fn handed_over(self) {
        self.0.meter.count();
    }
}

struct Report {
    load: Load,
    usage: Usage,
}

impl Report {
    /// Names and field numbers of the message's plain numbers.
    fn fields(&self) -> [(&'static str, u8, f64); 4] {
        [
            ("cpu_utilization", 1, self.usage.cpu),
            ("mem_utilization", 2, self.usage.memory),
            ("rps_fractional", 6, self.load.rps),
            ("application_utilization", 9, self.load.utilization),
        ]
    }

    fn header(&self, format: Format) -> String {
        match format {
            Format::Text => {
                let field = |(name, _, value)| format!("{name}={value:.4}, ");
                let fields: String = self.fields().into_iter().map(field).collect();
                format!("TEXT {fields}named_metrics.{DEFICIT}={:.4}", self.load.quality_deficit)
            }
            Format::Json => {
                let mut object: serde_json::Map<String, serde_json::Value> =
                    self.fields().into_iter().map(|(name, _, value)| (name.to_owned(), value.into())).collect();
                object.insert("named_metrics".to_owned(), serde_json::json!({ DEFICIT: self.load.quality_deficit }));
                format!("JSON {}", serde_json::Value::from(object))
            }
            Format::Bin => format!("BIN {}", STANDARD.encode(self.protobuf())),
        }
    }

    /// The message of five numbers, by hand: a field is its number and wire type, then its value.
    fn protobuf(&self) -> Vec<u8> {
        const NAMED_METRICS: u8 = 8;
        let mut bytes = Vec::new();
        for (_, number, value) in self.fields() {
            push_double(&mut bytes, number, value);
        }
        // An entry of a map is a message of a key and a value.
        let mut entry = Vec::new();
        push_bytes(&mut entry, 1, DEFICIT.as_bytes());
        push_double(&mut entry, 2, self.load.quality_deficit);
        push_bytes(&mut bytes, NAMED_METRICS, &entry);
        bytes
    }
}

fn push_double(bytes: &mut Vec<u8>, number: u8, value: f64) {
    const FIXED64: u8 = 1;
    bytes.push(number << 3 | FIXED64);
    bytes.extend(value.to_le_bytes());
}

/// `content` has fewer than 128 bytes, so that its length is one.
fn push_bytes(bytes: &mut Vec<u8>, number: u8, content: &[u8]) {
    const LENGTH_DELIMITED: u8 = 2;
    bytes.extend([number << 3 | LENGTH_DELIMITED, content.len() as u8]);
    bytes.extend(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: Report = Report {
        load: Load { utilization: 0.75, quality_deficit: 0.125, rps: 12.5 },
        usage: Usage { cpu: 0.5, memory: 0.25 },
    };

    #[test]
    fn the_three_formats_say_the_same() {
        let text = "TEXT cpu_utilization=0.5000, mem_utilization=0.2500, rps_fractional=12.5000, \
                    application_utilization=0.7500, named_metrics.quality_deficit=0.1250";
        assert_eq!(REPORT.header(Format::Text), text);
        let json = REPORT.header(Format::Json);
        let json: serde_json::Value = serde_json::from_str(json.strip_prefix("JSON ").unwrap()).unwrap();
        let same = serde_json::json!({
            "cpu_utilization": 0.5, "mem_utilization": 0.25, "rps_fractional": 12.5, "application_utilization": 0.75,
            "named_metrics": { "quality_deficit": 0.125 },
        });
        assert_eq!(json, same);
        // As `protoc --encode=xds.data.orca.v3.OrcaLoadReport` writes it: 0.5 is 0x3fe0..., little-endian.
        let mut wire = vec![0x09, 0, 0, 0, 0, 0, 0, 0xe0, 0x3f, 0x11, 0, 0, 0, 0, 0, 0, 0xd0, 0x3f];
        wire.extend([0x31, 0, 0, 0, 0, 0, 0, 0x29, 0x40, 0x49, 0, 0, 0, 0, 0, 0, 0xe8, 0x3f]);
        wire.extend([0x42, 26, 0x0a, 15]);
        wire.extend(b"quality_deficit");
        wire.extend([0x11, 0, 0, 0, 0, 0, 0, 0xc0, 0x3f]);
        assert_eq!(REPORT.header(Format::Bin), format!("BIN {}", STANDARD.encode(wire)));
    }
}
