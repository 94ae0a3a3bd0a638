//! Tables: what was measured, and what it is for one of the baseline.

use crate::measure::{Figures, Plan};

/// Contenders for the same job.
pub(crate) struct Table {
    title: String,
    baseline: &'static str,
    figures: Vec<Figures>,
    notes: Vec<String>,
}

impl Table {
    /// A table whose ratios are to the contender that is named `baseline`.
    pub(crate) fn new(title: impl Into<String>, baseline: &'static str, figures: Vec<Figures>) -> Self {
        Self { title: title.into(), baseline, figures, notes: Vec::new() }
    }

    /// The same with a line below.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    pub(crate) fn print(&self) {
        println!("\n{}", self.title);
        println!(
            "  {:<46}{:>9}{:>9}{:>8}{:>9}{:>9}{:>9}{:>9}",
            "", "min ns", "ratio", "median", "ratio", "allocs", "2 thr.", "best"
        );
        let baseline = self.figures.iter().find(|it| it.name == self.baseline);
        for it in &self.figures {
            let ratio = |of: fn(&[f64]) -> Option<f64>| Some(of(&it.nanos)? / of(&baseline?.nanos)?);
            let scaling: Vec<_> = it.rates.iter().map(|[one, two]| two / one).collect();
            let best = |n: usize| it.rates.iter().map(|rates| rates[n]).reduce(f64::max);
            println!(
                "  {:<46}{:>9}{:>9}{:>8}{:>9}{:>9}{:>9}{:>9}",
                it.name,
                text(min(&it.nanos), 1),
                text(ratio(min), 2),
                text(median(&it.nanos), 1),
                text(self.by_round(it), 2),
                text(Some(it.allocations), 2),
                text(median(&scaling), 2),
                text(best(1).zip(best(0)).map(|(two, one)| two / one), 2),
            );
        }
        self.notes.iter().for_each(|note| println!("  {note}"));
    }

    /// The median over the rounds of the ratio within a round: what disturbs one contender disturbs the others of its
    /// round.
    fn by_round(&self, of: &Figures) -> Option<f64> {
        let baseline = self.figures.iter().find(|it| it.name == self.baseline)?;
        let ratios: Vec<_> = of.nanos.iter().zip(&baseline.nanos).map(|(nanos, base)| nanos / base).collect();
        median(&ratios)
    }
}

/// What holds for every table.
pub(crate) fn head(plan: Plan) {
    println!(
        "{} rounds. CPU ns a call: the least of a round and the median; ratios to the baseline, of the least and the \
         median of those within\na round. Two threads' calls a second for one thread's: the median of the rounds, and \
         of the best. \
         Load average {}.{}",
        plan.rounds,
        std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
        if plan.quick { "\n--quick is too short to judge." } else { "" },
    );
}

fn min(figures: &[f64]) -> Option<f64> {
    figures.iter().copied().reduce(f64::min)
}

fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn text(figure: Option<f64>, digits: usize) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.digits$}"))
}
