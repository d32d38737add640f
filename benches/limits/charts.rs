//! The pictures in `docs/performance/`.

use std::{ops::Range, path::Path};

use plotters::prelude::*;

/// Blue, then orange: told apart by everybody.
const COLORS: [RGBColor; 2] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0)];
const FONT: (&str, u32) = ("sans-serif", 15);

pub(crate) struct Curve {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

impl Curve {
    pub(crate) fn new(name: &'static str, points: Vec<(f64, f64)>) -> Self {
        Self { name, points }
    }
}

pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
    pub(crate) curves: &'a [Curve],
}

/// Draws charts side by side, over an axis that doubles or grows tenfold.
pub(crate) fn draw(file: &str, x: Range<f64>, charts: &[Chart<'_>]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance").join(file);
    let width = 560 * u32::try_from(charts.len()).unwrap();
    let picture = SVGBackend::new(&path, (width, 380)).into_drawing_area();
    picture.fill(&WHITE).unwrap();
    let areas = picture.split_evenly((1, charts.len()));
    for (area, chart) in areas.iter().zip(charts) {
        let points = chart.curves.iter().flat_map(|curve| &curve.points);
        let highest = points.map(|(_, y)| *y).fold(0.0, f64::max);
        let tens = x.end > 100.0;
        let mut axes = ChartBuilder::on(area)
            .caption(chart.title, ("sans-serif", 19))
            .margin(12)
            .margin_right(40)
            .x_label_area_size(42)
            .y_label_area_size(58)
            .build_cartesian_2d(
                x.clone().log_scale().base(if tens { 10.0 } else { 2.0 }),
                0.0..highest * 1.25,
            )
            .unwrap();
        axes.configure_mesh()
            .x_desc(chart.x)
            .y_desc(chart.y)
            .light_line_style(WHITE)
            .label_style(FONT)
            .axis_desc_style(FONT)
            .y_labels(6)
            .draw()
            .unwrap();
        for (curve, color) in chart.curves.iter().zip(COLORS) {
            let line = LineSeries::new(curve.points.iter().copied(), color.stroke_width(2));
            let dots = line.point_size(4);
            axes.draw_series(dots).unwrap().label(curve.name).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 22, y)], color.stroke_width(2))
            });
        }
        axes.configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE)
            .border_style(BLACK.mix(0.3))
            .label_font(FONT)
            .draw()
            .unwrap();
    }
    picture.present().unwrap();
    println!("docs/performance/{file} is drawn");
}
