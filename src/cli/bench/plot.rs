//! The time of an image against the batch, as an SVG.

use super::report::Report;
use crate::Result;
use crate::cli::axes::{self, Drawn, decimal, span, ticks};
use plotters::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Width and height, in pixels.
const SIZE: (u32, u32) = (760, 480);
/// The colours of the narrowest and of the widest subnet.
const COLOURS: [[f64; 3]; 2] = [[253.0, 174.0, 97.0], [49.0, 54.0, 149.0]];

/// One line a subnet, with the most threads that were measured.
///
/// # Errors
/// [`Error::Input`] if it cannot be drawn: a bug of ours.
pub fn svg(report: &Report) -> Result<String> {
    axes::svg(|drawing| draw(report, drawing))
}

fn draw(report: &Report, drawing: &mut String) -> Drawn {
    let threads = report.results.iter().map(|row| row.threads).max().unwrap_or(1);
    let mut lines: Vec<(&str, BTreeMap<usize, f64>)> = Vec::new();
    for row in report.results.iter().filter(|row| row.threads == threads) {
        if lines.last().is_none_or(|(subnet, _)| *subnet != row.subnet) {
            lines.push((&row.subnet, BTreeMap::new()));
        }
        lines.last_mut().expect("pushed above").1.insert(row.batch, row.ms / row.batch as f64);
    }
    let times = || lines.iter().flat_map(|(_, line)| line.values().copied());
    let batches: BTreeSet<usize> = lines.iter().flat_map(|(_, line)| line.keys().copied()).collect();
    let x_ticks: Vec<f64> = batches.iter().map(|&batch| batch as f64).collect();
    let x = span(x_ticks.iter().copied(), 1.15);
    let y = span(times(), 1.1);
    let y_ticks = ticks(&y);

    let root = SVGBackend::with_string(drawing, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("{}: time of an image in one denoiser call, threads: {threads}", report.model);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x.log_scale().with_key_points(x_ticks), y.log_scale().with_key_points(y_ticks))?;
    chart
        .configure_mesh()
        .x_desc("images in the call")
        .y_desc("ms an image")
        .label_style(("sans-serif", 13))
        .x_label_formatter(&|batch| format!("{batch:.0}"))
        .y_label_formatter(&decimal)
        .light_line_style(TRANSPARENT)
        .draw()?;
    let last = lines.len().saturating_sub(1).max(1) as f64;
    for (index, (subnet, line)) in lines.iter().enumerate() {
        let [from, to] = COLOURS;
        let mix = |part: usize| (from[part] + (to[part] - from[part]) * index as f64 / last) as u8;
        let colour = RGBColor(mix(0), mix(1), mix(2));
        let points = line.iter().map(|(&batch, &ms)| (batch as f64, ms));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?
            .label(*subnet)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 13))
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::report::tests::report;

    #[test]
    fn a_line_for_each_subnet_and_labels_in_words() {
        let drawing = svg(&report()).unwrap();
        assert!(drawing.starts_with("<svg") && drawing.trim_end().ends_with("</svg>"));
        for colour in ["#FDAE61", "#313695"] {
            let lines = drawing.lines().filter(|line| line.starts_with("<polyline") && line.contains(colour));
            assert_eq!(lines.count(), 2, "one in the plot, one in the legend");
        }
        for text in [
            "0.500",
            "full",
            "tiny: time of an image in one denoiser call, threads: 2",
            "images in the call",
            "ms an image",
        ] {
            assert!(drawing.contains(text), "{text}");
        }
    }
}
