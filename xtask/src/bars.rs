//! A picture of times: one bar each, from the shortest to the longest, on a logarithmic scale.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
/// Where bars begin, and where the longest may end.
const BARS: (f64, f64) = (300.0, 760.0);
const TOP: f64 = 56.0;
const STEP: f64 = 30.0;
const OURS: &str = "#0072B2";
const THEIRS: &str = "#999999";

/// A time that is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    pub name: String,
    pub ms: f64,
    /// Whether it is a time of ours.
    pub ours: bool,
}

/// Draws the bars, as SVG. Times that are no positive number have no place on the scale and are left out.
pub fn draw(title: &str, bars: &[Bar]) -> String {
    let mut bars: Vec<&Bar> = bars.iter().filter(|bar| bar.ms > 0.0 && bar.ms.is_finite()).collect();
    bars.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    let (least, most) = (bars.first().map_or(1.0, |bar| bar.ms), bars.last().map_or(10.0, |bar| bar.ms));
    // A bar of the least time is to be seen as well.
    let from = (least / 2.0).log10();
    let at = |ms: f64| BARS.0 + (ms.log10() - from) / (most.log10() - from) * (BARS.1 - BARS.0);
    let height = TOP + STEP * bars.len() as f64 + 34.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    text(&mut svg, (20.0, 28.0), "16", "start", title);
    for (number, bar) in bars.iter().enumerate() {
        let y = TOP + STEP * number as f64;
        let (end, fill) = (at(bar.ms), if bar.ours { OURS } else { THEIRS });
        let width = end - BARS.0;
        // Writing into a string does not fail.
        let _ = writeln!(
            svg,
            r#"<rect x="{}" y="{y:.1}" width="{width:.1}" height="20" fill="{fill}"/>"#,
            BARS.0
        );
        text(&mut svg, (BARS.0 - 10.0, y + 15.0), "13", "end", &bar.name);
        text(&mut svg, (end + 8.0, y + 15.0), "13", "start", &format!("{} ms", three_digits(bar.ms)));
    }
    let below = TOP + STEP * bars.len() as f64 + 18.0;
    text(&mut svg, (BARS.0, below), "12", "start", "milliseconds a call, logarithmic; blue: Longwave");
    svg + "</svg>\n"
}

fn text(svg: &mut String, (x, y): (f64, f64), size: &str, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        svg,
        r##"<text x="{x:.1}" y="{y:.1}" font-size="{size}" text-anchor="{anchor}" fill="#222222">{words}</text>"##
    );
}

fn three_digits(ms: f64) -> String {
    let digits = (2 - ms.log10().floor() as i32).clamp(0, 3) as usize;
    format!("{ms:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(name: &str, ms: f64, ours: bool) -> Bar {
        Bar { name: name.into(), ms, ours }
    }

    #[test]
    fn bars_rise_and_say_whose_they_are() {
        let drawn =
            draw("a < b", &[bar("torch", 400.0, false), bar("exact", 25.0, true), bar("x", f64::NAN, true)]);
        let bars: Vec<&str> = drawn.lines().filter(|line| line.contains("height=\"20\"")).collect();
        assert_eq!(bars.len(), 2, "{drawn}");
        assert!(bars[0].contains(OURS) && bars[1].contains(THEIRS), "{drawn}");
        let width = |bar: &str| -> f64 {
            bar.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
        };
        // The longest fills the room; the other is as much shorter as its logarithm says: ln 2 of ln 32.
        assert_eq!(width(bars[1]), 460.0);
        assert!((width(bars[0]) - 460.0 * 2f64.ln() / 32f64.ln()).abs() < 0.06, "{drawn}");
        assert!(
            drawn.contains("a &lt; b") && drawn.contains(">25.0 ms<") && drawn.contains(">400 ms<"),
            "{drawn}"
        );
    }

    #[test]
    fn no_times_are_no_bars() {
        let drawn = draw("none", &[]);
        assert!(drawn.ends_with("</svg>\n") && !drawn.contains("NaN"), "{drawn}");
    }
}
