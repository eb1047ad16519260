//! Axes: where a number lies, and which numbers are named.

use super::svg::{Anchor, FAINT, GREY, INK, Svg};

/// Numbers along one side of a panel.
pub(super) struct Axis {
    from: f64,
    to: f64,
    log: bool,
    /// Pixels of `from` and `to`.
    pixels: (f64, f64),
    name: &'static str,
    label: fn(f64) -> String,
}

impl Axis {
    /// A logarithmic axis around positive `values`, with room at both ends.
    pub(super) fn log(
        values: impl Iterator<Item = f64>,
        pixels: (f64, f64),
        name: &'static str,
        label: fn(f64) -> String,
    ) -> Axis {
        let (from, to) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), x| (low.min(x), high.max(x)));
        let (from, to) = if from <= to { (from / 1.35, to * 1.35) } else { (0.01, 1.0) };
        Axis { from, to, log: true, pixels, name, label }
    }

    /// An axis of equal steps.
    pub(super) fn linear(
        (from, to): (f64, f64),
        pixels: (f64, f64),
        name: &'static str,
        label: fn(f64) -> String,
    ) -> Axis {
        Axis { from, to, log: false, pixels, name, label }
    }

    /// The pixel of a number.
    pub(super) fn at(&self, value: f64) -> f64 {
        let place = |x: f64| if self.log { x.ln() } else { x };
        let share = (place(value) - place(self.from)) / (place(self.to) - place(self.from));
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }

    /// The numbers that are named, rising.
    fn ticks(&self) -> Vec<f64> {
        if !self.log {
            let steps = (self.from * 10.0).ceil() as i32..=(self.to * 10.0 + 1e-9).floor() as i32;
            return steps.map(|tenth| f64::from(tenth) / 10.0).collect();
        }
        let decades = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
        let narrow = self.to / self.from < 10.0;
        let wide = self.to / self.from > 300.0;
        let steps: &[f64] = match (narrow, wide) {
            (true, _) => &[1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0],
            (_, true) => &[1.0],
            _ => &[1.0, 2.0, 5.0],
        };
        let all = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
        all.filter(|tick| (self.from..=self.to).contains(tick)).collect()
    }
}

/// Draws the frame of a panel: its axes, with lines at the numbers named, and its title.
pub(super) fn frame(svg: &mut Svg, x: &Axis, y: &Axis, title: &str) {
    let ((left, right), (bottom, top)) = (x.pixels, y.pixels);
    for tick in x.ticks() {
        let at = x.at(tick);
        svg.line(&[(at, bottom), (at, top)], FAINT, 1.0, false);
        svg.text((at, bottom + 18.0), 12, Anchor::Middle, INK, &(x.label)(tick));
    }
    for tick in y.ticks() {
        let at = y.at(tick);
        svg.line(&[(left, at), (right, at)], FAINT, 1.0, false);
        svg.text((left - 8.0, at + 4.0), 12, Anchor::End, INK, &(y.label)(tick));
    }
    svg.line(&[(left, top), (left, bottom), (right, bottom), (right, top), (left, top)], GREY, 1.0, false);
    svg.text(((left + right) / 2.0, bottom + 40.0), 13, Anchor::Middle, INK, x.name);
    svg.text_upwards((left - 58.0, (bottom + top) / 2.0), 13, y.name);
    svg.text((left, top - 40.0), 15, Anchor::Start, INK, title);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lie_where_their_logarithm_or_they_themselves_say() {
        let log = Axis::log([1.35, 100.0 / 1.35].into_iter(), (50.0, 250.0), "", |x| x.to_string());
        assert!((log.at(10.0) - 150.0).abs() < 1e-9 && (log.at(100.0) - 250.0).abs() < 1e-9);
        let ticks: Vec<String> = log.ticks().iter().map(|tick| format!("{tick:.0}")).collect();
        assert_eq!(ticks, ["1", "2", "5", "10", "20", "50", "100"]);
        let linear = Axis::linear((0.5, 1.0), (200.0, 100.0), "", |x| x.to_string());
        assert_eq!((linear.at(0.5), linear.at(0.75), linear.at(1.0)), (200.0, 150.0, 100.0));
        assert_eq!(linear.ticks(), [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]);
    }

    #[test]
    fn an_axis_without_numbers_is_still_one() {
        let axis = Axis::log(std::iter::empty(), (0.0, 100.0), "", |x| x.to_string());
        assert!(axis.at(0.1).is_finite() && !axis.ticks().is_empty());
    }
}
