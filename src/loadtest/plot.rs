//! The two pictures of a load test, as SVG.

use crate::loadtest::{Report, Row};
use crate::{Error, Result};
use plotters::prelude::*;
use std::ops::Range;

/// Width and height, in pixels.
const SIZE: (u32, u32) = (760, 480);
/// A colour for each policy, in the order of their first rows: told apart by the colour-blind too (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// Share of requests answered in time against the load, a line for each policy. Void rows are left out.
///
/// # Errors
/// [`Error::Input`] if it cannot be drawn: a bug of ours.
pub fn attainment_by_load(report: &Report) -> Result<String> {
    let picture = Picture {
        title: format!("{}: images within {:.0} ms", report.model, report.deadline_ms),
        x: "load (arrivals over the capacity at full width)",
        y: "share of all requests",
        point: |row| Some((row.load, row.attainment)),
        legend: SeriesLabelPosition::LowerLeft,
    };
    picture.svg(report)
}

/// Share of requests answered in time against the mean quality of those answers, a point for each policy and load.
/// Void rows and those without an image in time are left out.
///
/// # Errors
/// [`Error::Input`] if it cannot be drawn: a bug of ours.
pub fn attainment_by_quality(report: &Report) -> Result<String> {
    let picture = Picture {
        title: format!("{}: images within {:.0} ms, at each load", report.model, report.deadline_ms),
        x: "mean quality of the images in time",
        y: "share of all requests",
        point: |row| Some((row.quality.in_time?, row.attainment)),
        legend: SeriesLabelPosition::LowerLeft,
    };
    picture.svg(report)
}

/// Rows as points, those of one policy joined in the order of their loads.
struct Picture {
    title: String,
    x: &'static str,
    y: &'static str,
    point: fn(&Row) -> Option<(f64, f64)>,
    legend: SeriesLabelPosition,
}

impl Picture {
    fn svg(&self, report: &Report) -> Result<String> {
        let mut drawing = String::new();
        self.draw(report, &mut drawing).map_err(|error| Error::input("--plot", error))?;
        Ok(drawing)
    }

    fn draw(
        &self,
        report: &Report,
        drawing: &mut String,
    ) -> std::result::Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let mut policies: Vec<&str> = Vec::new();
        for row in &report.rows {
            if !policies.contains(&row.policy.as_str()) {
                policies.push(&row.policy);
            }
        }
        let series = |policy: &str| -> Vec<(f64, f64, f64)> {
            let rows = report.rows.iter().filter(|row| row.policy == policy && !row.void);
            let point = |row: &Row| (self.point)(row).map(|(x, y)| (row.load, x, y));
            let mut points: Vec<_> = rows.filter_map(point).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points
        };
        let x = padded(policies.iter().flat_map(|policy| series(policy)).map(|(_, x, _)| x));

        let root = SVGBackend::with_string(drawing, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, ("sans-serif", 18))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(x, -0.02..1.05)?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .label_style(("sans-serif", 13))
            .y_label_formatter(&|share| format!("{share:.1}"))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (index, policy) in policies.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let points = series(policy);
            let line = LineSeries::new(points.iter().map(|&(_, x, y)| (x, y)), colour.stroke_width(2)).point_size(4);
            chart
                .draw_series(line)?
                .label(*policy)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
            // Which load a point belongs to.
            let label = |(load, x, y): (f64, f64, f64)| {
                EmptyElement::at((x, y))
                    + Text::new(format!("{load}"), (6, -14), ("sans-serif", 11).into_font().color(&colour))
            };
            chart.draw_series(points.into_iter().map(label))?;
        }
        chart
            .configure_series_labels()
            .position(self.legend.clone())
            .label_font(("sans-serif", 13))
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        root.present()
    }
}

/// From a little below the least to a little above the greatest; around 1 where there is nothing.
fn padded(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (x.min(low), x.max(high)));
    if low > high {
        return 0.0..1.0;
    }
    let pad = ((high - low) * 0.08).max(0.02);
    low - pad..high + pad
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::report::tests::{report, row};

    fn drawn(rows: Vec<Row>) -> [String; 2] {
        let report = report(rows);
        [attainment_by_load(&report).unwrap(), attainment_by_quality(&report).unwrap()]
    }

    fn lines(drawing: &str, colour: &str) -> usize {
        drawing.lines().filter(|line| line.starts_with("<polyline") && line.contains(colour)).count()
    }

    #[test]
    fn a_line_for_each_policy_and_labels_in_words() {
        let other = Row { policy: "slackfit".to_owned(), load: 0.5, ..row() };
        for (drawing, x) in drawn(vec![row(), other.clone(), Row { load: 1.0, ..other }])
            .iter()
            .zip(["load (arrivals over the capacity at full width)", "mean quality of the images in time"])
        {
            assert!(drawing.starts_with("<svg") && drawing.trim_end().ends_with("</svg>"));
            for text in ["ours", "slackfit", "tiny: images within 100 ms", "share of all requests", x] {
                assert!(drawing.contains(text), "{text}");
            }
            // One in the plot, one in the legend.
            assert_eq!([lines(drawing, "#D55E00"), lines(drawing, "#0072B2")], [2, 2]);
        }
    }

    #[test]
    fn a_void_row_and_one_without_images_are_left_out() {
        let void = Row { void: true, load: 7.25, ..row() };
        let mut nothing = Row { load: 3.125, ..row() };
        nothing.quality.in_time = None;
        let [load, quality] = drawn(vec![row(), void, nothing]);
        assert!(!load.contains("7.25") && load.contains("3.125"));
        assert!(!quality.contains("7.25") && !quality.contains("3.125"));
        let [load, quality] = drawn(Vec::new());
        assert!(load.contains("</svg>") && quality.contains("</svg>"), "nothing is no reason to fail");
    }
}
