//! The plot of a comparison: error against bytes, one curve a method, and beside it how well bounds keep their word.

mod axis;
mod svg;

use super::summary::{Label, Row, Sample, coverage};
use axis::{Axis, frame};
use svg::{Anchor, GREY, INK, Mark, Svg};

const SIZE: (f64, f64) = (1160.0, 520.0);
/// Left and right, bottom and top of the panels.
const LEFT: (f64, f64) = (84.0, 620.0);
const RIGHT: (f64, f64) = (744.0, 1130.0);
const UPRIGHT: (f64, f64) = (440.0, 90.0);
/// Colours that colour-blind readers can tell apart.
const COLOURS: [&str; 6] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"];

/// Points under one name.
struct Series {
    name: String,
    colour: &'static str,
    mark: Mark,
    line: bool,
    dashed: bool,
    points: Vec<(f64, f64)>,
    /// Text beside each point, or none.
    notes: Vec<String>,
}

/// Draws what was compared. Every result counts over all layers.
pub(crate) fn plot(title: &str, results: &[(Label, Vec<Sample>)]) -> String {
    let mut svg = Svg::new(SIZE.0, SIZE.1);
    svg.text((LEFT.0, 28.0), 17, Anchor::Start, INK, title);
    errors(&mut svg, results);
    calibration(&mut svg, results);
    svg.finish()
}

fn errors(svg: &mut Svg, results: &[(Label, Vec<Sample>)]) {
    let rows: Vec<Row> =
        results.iter().map(|(label, samples)| Row::new(label, None, samples.iter())).collect();
    let all = |method: &str| -> Vec<&Row> {
        let mut rows: Vec<&Row> = rows.iter().filter(|row| row.method == method).collect();
        rows.sort_by(|a, b| a.bytes_share.total_cmp(&b.bytes_share));
        rows
    };
    let of = |method: &str, with_tau: bool| -> Vec<&Row> {
        all(method).into_iter().filter(|row| row.tau.is_some() == with_tau).collect()
    };
    let series = |name: &str, rows: Vec<&Row>, colour, mark, (line, dashed), noted: bool| Series {
        name: name.into(),
        colour,
        mark,
        line,
        dashed,
        points: rows.iter().map(|row| (row.bytes_share, row.error_mean)).collect(),
        notes: if noted { rows.iter().map(|row| note(row)).collect() } else { Vec::new() },
    };
    let drawn = [
        series("longwave", of("longwave", true), COLOURS[0], Mark::Circle, (true, false), true),
        series("longwave, error budget", of("longwave", false), COLOURS[0], Mark::Ring, (false, false), true),
        series("oracle", all("oracle"), COLOURS[2], Mark::Square, (true, true), false),
        series("retroinfer", all("retroinfer"), COLOURS[1], Mark::Triangle, (true, false), false),
    ];
    let drawn: Vec<Series> = drawn.into_iter().filter_map(Series::positive).collect();
    let points = || drawn.iter().flat_map(|series| &series.points);
    let x = Axis::log(points().map(|p| p.0), LEFT, "bytes read, share of the 16-bit KV", percent);
    let y = Axis::log(points().map(|p| p.1), UPRIGHT, "mean relative error", shortest);
    frame(svg, &x, &y, "Error against bytes");
    drawn.iter().for_each(|series| series.draw(svg, &x, &y));
    legend(
        svg,
        drawn.iter().map(|series| (series, 46.0 + 6.6 * series.name.len() as f64, 0.0)),
        (LEFT.0, UPRIGHT.1 - 16.0),
    );
    if let Some(exact) = rows.iter().find(|row| row.method == "exact") {
        let text = format!(
            "exact, not drawn: error {:.1e} at {} of the bytes",
            exact.error_mean,
            percent(exact.bytes_share)
        );
        svg.text((LEFT.0, SIZE.1 - 14.0), 12, Anchor::Start, GREY, &text);
    }
}

fn note(row: &Row) -> String {
    let error = || row.budget.split(',').next().unwrap_or_default().replace('=', " ");
    row.tau.map_or_else(error, |tau| format!("tau {}", shortest(tau)))
}

fn calibration(svg: &mut Svg, results: &[(Label, Vec<Sample>)]) {
    let marks = [Mark::Circle, Mark::Square, Mark::Triangle, Mark::Diamond];
    let covered = results.iter().filter(|(label, _)| label.tau.is_some());
    let covered = covered.map(|(label, samples)| (label, coverage(samples))).filter(|(_, c)| !c.is_empty());
    let drawn: Vec<Series> = covered
        .enumerate()
        .map(|(number, (label, points))| Series {
            name: format!("tau {}", shortest(label.tau.unwrap_or_default())),
            colour: COLOURS[number % COLOURS.len()],
            mark: marks[number % marks.len()],
            line: true,
            dashed: false,
            points,
            notes: Vec::new(),
        })
        .collect();
    let least = drawn.iter().flat_map(|series| &series.points).map(|p| p.1).fold(0.5, f64::min);
    let from = (least * 10.0).floor() / 10.0;
    let x = Axis::linear((0.45, 1.0), RIGHT, "stated confidence", |x| format!("{x:.1}"));
    let y = Axis::linear((from - 0.05, 1.02), UPRIGHT, "answers within their bound", |x| format!("{x:.1}"));
    frame(svg, &x, &y, "Calibration of the bound");
    let diagonal = [0.45f64.max(from - 0.05), 1.0].map(|share| (x.at(share), y.at(share)));
    svg.line(&diagonal, GREY, 1.2, true);
    if drawn.is_empty() {
        let middle = ((RIGHT.0 + RIGHT.1) / 2.0, (UPRIGHT.0 + UPRIGHT.1) / 2.0);
        svg.text(middle, 13, Anchor::Middle, GREY, "no bounds: nothing was audited");
    } else {
        let text = "dashed: covers exactly what it states; above it, more";
        svg.text((RIGHT.0, SIZE.1 - 14.0), 12, Anchor::Start, GREY, text);
    }
    drawn.iter().for_each(|series| series.draw(svg, &x, &y));
    // Below the diagonal, where no curve comes.
    let top = UPRIGHT.0 - 20.0 * drawn.len() as f64;
    legend(svg, drawn.iter().map(|series| (series, 0.0, 20.0)), (RIGHT.1 - 130.0, top));
}

impl Series {
    /// The series without what a logarithmic axis has no place for; `None` where nothing is left.
    fn positive(mut self) -> Option<Series> {
        let fits: Vec<bool> = self.points.iter().map(|&(x, y)| x > 0.0 && y > 0.0 && y.is_finite()).collect();
        let mut keep = fits.iter();
        self.points.retain(|_| *keep.next().unwrap_or(&false));
        let mut keep = fits.iter();
        self.notes.retain(|_| *keep.next().unwrap_or(&false));
        (!self.points.is_empty()).then_some(self)
    }

    fn draw(&self, svg: &mut Svg, x: &Axis, y: &Axis) {
        let places: Vec<(f64, f64)> = self.points.iter().map(|p| (x.at(p.0), y.at(p.1))).collect();
        if self.line && places.len() > 1 {
            svg.line(&places, self.colour, 2.0, self.dashed);
        }
        places.iter().for_each(|&place| svg.mark(place, self.mark, self.colour));
        // Beside a falling curve: below it, and above it for points that lie on none.
        for (&(x, y), note) in places.iter().zip(&self.notes) {
            if self.line {
                svg.text((x - 8.0, y + 15.0), 11, Anchor::End, GREY, note);
            } else {
                svg.text((x + 8.0, y - 6.0), 11, Anchor::Start, GREY, note);
            }
        }
    }
}

/// Names the series, from a place on, each with the step to the next.
fn legend<'a>(
    svg: &mut Svg,
    drawn: impl Iterator<Item = (&'a Series, f64, f64)>,
    (mut x, mut y): (f64, f64),
) {
    for (series, right, down) in drawn {
        if series.line && series.points.len() > 1 {
            svg.line(&[(x, y), (x + 24.0, y)], series.colour, 2.0, series.dashed);
        }
        svg.mark((x + 12.0, y), series.mark, series.colour);
        svg.text((x + 30.0, y + 4.0), 12, Anchor::Start, INK, &series.name);
        (x, y) = (x + right, y + down);
    }
}

fn percent(share: f64) -> String {
    format!("{} %", shortest(100.0 * share))
}

/// Three digits, without zeros that say nothing.
fn shortest(x: f64) -> String {
    if !(1e-4..1e5).contains(&x) {
        return format!("{x:.0e}");
    }
    let digits = (2 - x.log10().floor() as i32).max(0) as usize;
    let text = format!("{x:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longwave::Budget;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0032, 0.02, 1.0, 3.7, 12.0, 0.0010152, 1e-7, 100.0].map(shortest);
        assert_eq!(shown, ["0.0032", "0.02", "1", "3.7", "12", "0.00102", "1e-7", "100"]);
    }

    fn sample(error: f64, bytes_share: f64, stated: Vec<Option<f64>>) -> Sample {
        Sample {
            layer: 0,
            query: 0,
            error,
            bytes_share,
            page_share: 0.0,
            rungs: crate::rungs::RungShares::default(),
            predicted: None,
            bound: None,
            stated,
        }
    }

    #[test]
    fn every_method_is_named_and_drawn_and_exact_is_told() {
        let stated = vec![Some(0.04), Some(0.01)];
        let results = [
            (Label::of(&Budget::Exact), vec![sample(1e-7, 1.0, Vec::new())]),
            (Label::of(&Budget::Tau(0.002)), vec![sample(0.03, 0.04, stated.clone())]),
            (Label::of(&Budget::Tau(0.001)), vec![sample(0.02, 0.05, stated)]),
            (Label::of(&Budget::RETROINFER), vec![sample(0.1, 0.06, Vec::new())]),
        ];
        let drawn = plot("a <trace>", &results);
        for text in
            ["a &lt;trace&gt;", ">longwave<", ">retroinfer<", ">tau 0.002<", "exact, not drawn: error 1.0e-7"]
        {
            assert!(drawn.contains(text), "no {text} in {drawn}");
        }
        let numbers = drawn.replace("retroinfer", "");
        assert!(!numbers.contains("NaN") && !numbers.contains("inf"), "{drawn}");
        // Lower errors lie lower, and more bytes further right: circles come in the order of their bytes.
        let place = |circle: &str| -> (f64, f64) {
            let number = |key: &str| circle.split(key).nth(1)?.split('"').next()?.parse::<f64>().ok();
            (number("cx=\"").unwrap(), number("cy=\"").unwrap())
        };
        let circles: Vec<(f64, f64)> =
            drawn.lines().filter(|l| l.starts_with("<circle")).map(place).collect();
        assert!(circles[0].0 < circles[1].0 && circles[0].1 < circles[1].1, "{circles:?}");
    }

    #[test]
    fn nothing_to_draw_is_said() {
        assert!(plot("empty", &[]).contains("no bounds"));
    }
}
