//! The lives of containers as a picture: a bar for each kind, a part of it for each phase.

use crate::life::{Lives, PHASES};

/// Colours of the phases, told apart also by who cannot tell red from green.
const COLOURS: [&str; PHASES.len() - 1] = ["#999999", "#0072b2", "#e69f00", "#cc79a7", "#009e73"];

/// Left of the bars, for the names, in pixels.
const NAMES: f64 = 90.0;
/// The longest bar.
const WIDTH: f64 = 560.0;
/// Right of it, for its total.
const TOTALS: f64 = 80.0;
/// Above the bars, for the title and the colours.
const HEAD: f64 = 64.0;
/// From one bar to the next.
const STEP: f64 = 30.0;
const BAR: f64 = 20.0;

/// An SVG of the medians of all phases of `lives`, under `title`.
pub fn svg(title: &str, lives: &[Lives]) -> String {
    let total = |lives: &Lives| {
        let phases = lives.phases.iter().take(COLOURS.len());
        phases.map(|phase| phase.median).sum::<f64>()
    };
    let longest = lives.iter().map(total).fold(f64::MIN_POSITIVE, f64::max);
    let (width, height) = (
        NAMES + WIDTH + TOTALS,
        HEAD + STEP * lives.len() as f64 + 10.0,
    );
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let text = |x: f64, y: f64, anchor: &str, text: &str| {
        format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n")
    };
    let mut draw = |shape: String| out.push_str(&shape);
    draw(text(NAMES, 18.0, "start", title));
    for (number, (phase, colour)) in PHASES.iter().zip(COLOURS).enumerate() {
        let x = NAMES + 90.0 * number as f64;
        draw(part(x, 32.0, 12.0, 12.0, colour, phase));
        draw(text(x + 17.0, 43.0, "start", phase));
    }
    for (number, of) in lives.iter().enumerate() {
        let y = HEAD + STEP * number as f64;
        draw(text(NAMES - 10.0, y + 15.0, "end", &of.kind));
        let mut x = NAMES;
        for ((phase, colour), name) in of.phases.iter().zip(COLOURS).zip(PHASES) {
            let width = phase.median / longest * WIDTH;
            draw(part(x, y, width, BAR, colour, name));
            x += width;
        }
        draw(text(
            x + 8.0,
            y + 15.0,
            "start",
            &format!("{:.1} ms", total(of)),
        ));
    }
    out.push_str("</svg>\n");
    out
}

/// A rectangle that tells its name when it is pointed at.
fn part(x: f64, y: f64, width: f64, height: f64, colour: &str, name: &str) -> String {
    format!(
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
         fill=\"{colour}\"><title>{name}</title></rect>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Figures;

    #[test]
    fn a_bar_is_as_long_as_its_life() {
        let lives = |kind: &str, phases: [f64; PHASES.len()]| Lives {
            kind: kind.to_owned(),
            phases: phases.map(|phase| Figures::of(vec![phase])),
            rate: 1.0,
            turns: vec![1.0],
        };
        let all = [
            lives("long", [10.0, 20.0, 5.0, 5.0, 16.0, 56.0]),
            lives("short", [1.0, 2.0, 0.5, 0.5, 1.6, 5.6]),
        ];
        let picture = svg("a title", &all);
        for expected in [
            "a title",
            // 20 of 56 ms, and 2 of them, on 560 pixels.
            "width=\"200.0\" height=\"20.0\" fill=\"#0072b2\"",
            "width=\"20.0\" height=\"20.0\" fill=\"#0072b2\"",
            "56.0 ms",
            "5.6 ms",
        ] {
            assert!(picture.contains(expected), "{expected} in {picture}");
        }
    }
}
