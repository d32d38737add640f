//! The pictures in `docs/`.

use std::{ops::Range, path::Path};

use plotters::{
    coord::{
        Shift,
        ranged1d::{AsRangedCoord, Ranged, ValueFormatter},
    },
    prelude::*,
};

/// Told apart by everybody: blue, orange, green, purple, grey.
const COLORS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(90, 90, 90),
];
const FONT: (&str, u32) = ("sans-serif", 15);

#[derive(Clone)]
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

/// How an axis grows.
// Each bench uses a part of these.
#[allow(dead_code)]
#[derive(Clone)]
pub(crate) enum Axis {
    Even(Range<f64>),
    Twofold(Range<f64>),
    Tenfold(Range<f64>),
}

/// Draws charts side by side into a file of `docs/`. Without an axis `y` each begins at zero and is as
/// high as its curves.
pub(crate) fn draw(file: &str, x: &Axis, y: Option<&Axis>, charts: &[Chart<'_>]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(file);
    let width = 560 * u32::try_from(charts.len()).unwrap();
    let picture = SVGBackend::new(&path, (width, 380)).into_drawing_area();
    picture.fill(&WHITE).unwrap();
    let areas = picture.split_evenly((1, charts.len()));
    for (area, chart) in areas.iter().zip(charts) {
        let points = chart.curves.iter().flat_map(|curve| &curve.points);
        let highest = points.map(|(_, y)| *y).fold(0.0, f64::max);
        let y = y.cloned().unwrap_or(Axis::Even(0.0..highest * 1.25));
        match x.clone() {
            Axis::Even(x) => across(area, chart, x, y),
            Axis::Twofold(x) => across(area, chart, x.log_scale().base(2.0), y),
            Axis::Tenfold(x) => across(area, chart, x.log_scale().base(10.0), y),
        }
    }
    picture.present().unwrap();
    println!("docs/{file} is drawn");
}

/// An axis whose values are numbers.
trait Numbers: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>> {}

impl<A: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>> Numbers for A {}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn across(area: &Area<'_>, chart: &Chart<'_>, x: impl Numbers, y: Axis) {
    match y {
        Axis::Even(y) => plot(area, chart, x, y),
        Axis::Twofold(y) => plot(area, chart, x, y.log_scale().base(2.0)),
        Axis::Tenfold(y) => plot(area, chart, x, y.log_scale().base(10.0)),
    }
}

fn plot<X: Numbers, Y: Numbers>(area: &Area<'_>, chart: &Chart<'_>, x: X, y: Y)
where
    X::CoordDescType: Ranged<ValueType = f64>,
    Y::CoordDescType: Ranged<ValueType = f64>,
{
    let mut axes = ChartBuilder::on(area)
        .caption(chart.title, ("sans-serif", 19))
        .margin(12)
        .margin_right(40)
        .x_label_area_size(42)
        .y_label_area_size(58)
        .build_cartesian_2d(x, y)
        .unwrap();
    axes.configure_mesh()
        .x_desc(chart.x)
        .y_desc(chart.y)
        .light_line_style(WHITE)
        .label_style(FONT)
        .axis_desc_style(FONT)
        .y_labels(6)
        .x_label_formatter(&|x| short(*x))
        .y_label_formatter(&|y| short(*y))
        .draw()
        .unwrap();
    for (curve, color) in chart.curves.iter().zip(COLORS) {
        let line = LineSeries::new(curve.points.iter().copied(), color.stroke_width(2));
        // Many points are a line without dots.
        let dots = line.point_size(if curve.points.len() > 50 { 0 } else { 4 });
        axes.draw_series(dots)
            .unwrap()
            .label(curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], color.stroke_width(2)));
    }
    axes.configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .label_font(FONT)
        .draw()
        .unwrap();
}

/// Millions are `M`, so that labels have their place.
fn short(number: f64) -> String {
    match number {
        number if number >= 1e6 => format!("{} M", number / 1e6),
        number if number >= 1e4 => format!("{} k", number / 1e3),
        number => format!("{}", (number * 100.0).round() / 100.0),
    }
}
