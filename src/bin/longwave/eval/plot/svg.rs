//! The few shapes that a plot is made of, as SVG.

use std::fmt::Write;

/// An element. Writing into a string does not fail.
macro_rules! element {
    ($svg:expr, $($format:tt)*) => { let _ = writeln!($svg.body, $($format)*); };
}

pub(super) const INK: &str = "#222222";
pub(super) const FAINT: &str = "#dddddd";
pub(super) const GREY: &str = "#777777";

/// A drawing on white.
pub(super) struct Svg {
    body: String,
    width: f64,
    height: f64,
}

/// Where a text stands against its point.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// What marks a point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mark {
    Circle,
    Square,
    Triangle,
    Diamond,
    Ring,
}

impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Svg { body: String::new(), width, height }
    }

    pub(super) fn text(&mut self, (x, y): (f64, f64), size: u32, anchor: Anchor, fill: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escaped(text);
        element!(
            self,
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" text-anchor="{anchor}" fill="{fill}">{text}</text>"#
        );
    }

    /// Text that reads upwards, in the middle of its point.
    pub(super) fn text_upwards(&mut self, (x, y): (f64, f64), size: u32, text: &str) {
        let text = escaped(text);
        element!(
            self,
            r#"<text transform="translate({x:.1} {y:.1}) rotate(-90)" font-size="{size}" text-anchor="middle" fill="{INK}">{text}</text>"#
        );
    }

    pub(super) fn line(&mut self, points: &[(f64, f64)], stroke: &str, width: f64, dashed: bool) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let dash = if dashed { r#" stroke-dasharray="6 4""# } else { "" };
        let points = points.join(" ");
        element!(
            self,
            r#"<polyline points="{points}" fill="none" stroke="{stroke}" stroke-width="{width}"{dash}/>"#
        );
    }

    pub(super) fn mark(&mut self, (x, y): (f64, f64), mark: Mark, colour: &str) {
        let polygon = |points: &[(f64, f64)]| -> String {
            points.iter().map(|(dx, dy)| format!("{:.1},{:.1} ", x + dx, y + dy)).collect()
        };
        let points = match mark {
            Mark::Circle | Mark::Ring => {
                let fill = if mark == Mark::Ring { "white" } else { colour };
                element!(
                    self,
                    r#"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.6"/>"#
                );
                return;
            }
            Mark::Square => polygon(&[(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)]),
            Mark::Triangle => polygon(&[(0.0, -5.0), (4.6, 3.6), (-4.6, 3.6)]),
            Mark::Diamond => polygon(&[(0.0, -5.2), (5.2, 0.0), (0.0, 5.2), (-5.2, 0.0)]),
        };
        element!(self, r#"<polygon points="{}" fill="{colour}"/>"#, points.trim_end());
    }

    /// The finished file.
    pub(super) fn finish(self) -> String {
        let Svg { body, width, height } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} \
             {height}\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">\n<rect width=\"{width}\" \
             height=\"{height}\" fill=\"white\"/>\n{body}</svg>\n"
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
