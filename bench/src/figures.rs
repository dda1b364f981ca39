//! Many measurements of one thing, summed up.

use serde::Serialize;

/// Where measurements lie. A rank between two of them takes the upper one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Half of them are at most this.
    pub median: f64,
    /// A quarter of them is at most this: the lower end of their spread.
    pub quarter: f64,
    /// Three quarters of them are at most this: the upper end of their spread.
    pub three_quarters: f64,
    /// 99 of 100 are at most this; of fewer than a hundred it is the largest.
    pub p99: f64,
}

impl Figures {
    /// Sums up `measured`, which must not be empty.
    pub fn of(mut measured: Vec<f64>) -> Self {
        measured.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * measured.len() as f64).ceil() as usize;
            measured[rank.clamp(1, measured.len()) - 1]
        };
        Self {
            median: at(0.5),
            quarter: at(0.25),
            three_quarters: at(0.75),
            p99: at(0.99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_sorted_measurements() {
        let figures = Figures::of((1..=200).rev().map(f64::from).collect());
        assert_eq!(figures.median, 100.0);
        assert_eq!(figures.quarter, 50.0);
        assert_eq!(figures.three_quarters, 150.0);
        assert_eq!(figures.p99, 198.0);
        assert_eq!(Figures::of(vec![3.0]).p99, 3.0);
        assert_eq!(Figures::of(vec![3.0, 1.0, 2.0]).p99, 3.0);
    }
}
