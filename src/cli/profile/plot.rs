//! Quality against time, as an SVG.

use crate::Result;
use crate::cli::axes::{self, Drawn, decimal, span, ticks};
use crate::diffusion::Plan;
use crate::evaluation::survey::Survey;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Width and height, in pixels.
const SIZE: (u32, u32) = (900, 560);
/// The colours of plans of one width, of width schedules, and of the frontier.
const COLOURS: [RGBColor; 3] = [RGBColor(116, 173, 209), RGBColor(253, 174, 97), RGBColor(49, 54, 149)];
/// Pixels between the baselines of two labels.
const LABEL_GAP: i32 = 15;

/// All plans that were measured as points, the frontier as a line with some of its plans by name.
///
/// # Errors
/// As [`axes::svg`].
pub fn svg(model: &str, survey: &Survey) -> Result<String> {
    axes::svg(|drawing| draw(model, survey, drawing))
}

fn draw(model: &str, survey: &Survey, drawing: &mut String) -> Drawn {
    let profile = &survey.profile;
    let frontier: Vec<(f64, f64, &Plan)> = profile
        .frontier
        .iter()
        .filter_map(|row| Some((profile.image_ms(&row.plan)?, row.quality, &row.plan)))
        .collect();
    // What is far below the frontier would take most of the room.
    let bottom = frontier.first().map_or(0.0, |first| (first.1 * 10.0 - 1.0).floor() / 10.0);
    let shown = || survey.points.iter().filter(|point| point.rating.quality >= bottom);
    // Room for the labels, which lie to the left of their points.
    let x = span(shown().map(|point| point.ms), 1.15);
    let x = x.start / 1.8..x.end;
    let x_ticks = ticks(&x);

    let root = SVGBackend::with_string(drawing, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let device = &profile.device;
    let title = format!("{model}: quality against time, {}, threads: {}", device.processor, device.threads);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x.log_scale().with_key_points(x_ticks), bottom..1.03)?;
    chart
        .configure_mesh()
        .x_desc("ms an image, alone")
        .y_desc("quality")
        .label_style(("sans-serif", 13))
        .x_label_formatter(&decimal)
        .y_label_formatter(&decimal)
        .y_labels(7)
        .light_line_style(TRANSPARENT)
        .draw()?;
    let [one_width, schedule, line] = COLOURS;
    for (name, colour, changes) in [("one width", one_width, false), ("width schedule", schedule, true)] {
        let points = shown().filter(|point| (point.plan.widths.len() > 1) == changes);
        let dots = points.map(|point| Circle::new((point.ms, point.rating.quality), 3, colour.filled()));
        let series = chart.draw_series(dots)?;
        series.label(name).legend(move |(x, y)| Circle::new((x + 8, y), 3, colour.filled()));
    }
    let corners = frontier.iter().map(|&(ms, quality, _)| (ms, quality));
    chart
        .draw_series(LineSeries::new(corners, line.stroke_width(2)).point_size(4))?
        .label("frontier")
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], line.stroke_width(2)));
    let font = ("sans-serif", 12).into_font().color(&line).pos(Pos::new(HPos::Right, VPos::Bottom));
    // From the best down, so that the best always has its name.
    let mut above = i32::MIN;
    for &(ms, quality, plan) in frontier.iter().rev() {
        let (left, top) = chart.backend_coord(&(ms, quality));
        if top.saturating_sub(above) >= LABEL_GAP {
            root.draw(&Text::new(plan.to_string(), (left - 6, top - 2), font.clone()))?;
            above = top;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .label_font(("sans-serif", 13))
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::profile::report::tests::profile;
    use crate::evaluation::frontier::Point;
    use crate::evaluation::yardstick::Rating;

    #[test]
    fn every_plan_is_a_point_and_the_frontier_a_line_with_names() {
        let profile = profile();
        let point = |plan: &str, quality| {
            let plan: Plan = plan.parse().unwrap();
            Point { ms: profile.image_ms(&plan).unwrap(), plan, rating: Rating { distance: 0.0, quality, error: 0.0 } }
        };
        let mut points: Vec<Point> =
            profile.frontier.iter().map(|row| point(&row.plan.to_string(), row.quality)).collect();
        points.extend([point("euler-8@full", 0.6), point("euler-8@0.500", 0.55), point("euler-1@0.500", 0.1)]);
        let drawing = svg("tiny", &Survey { profile, points, foretold: None }).unwrap();
        assert!(drawing.starts_with("<svg") && drawing.trim_end().ends_with("</svg>"));
        let circles =
            |colour: &str| drawing.lines().filter(|line| line.starts_with("<circle") && line.contains(colour)).count();
        assert_eq!(circles("#74ADD1"), 3 + 1, "all of one width but the two worst, and the legend's");
        assert_eq!(circles("#FDAE61"), 1 + 1);
        assert_eq!(circles("#313695"), 3);
        for text in [
            "dpmpp2m-6@0.500*4,full*2",
            "heun-18@full",
            "ms an image, alone",
            "tiny: quality against time, AMD EPYC, threads: 2",
        ] {
            assert!(drawing.contains(text), "{text}");
        }
    }
}
