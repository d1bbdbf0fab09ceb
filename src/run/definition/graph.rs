use std::collections::HashMap;

/// Which step needs which, and what has surely ended before each.
#[derive(Debug)]
pub(super) struct Graph {
    ids: Vec<String>,
    places: HashMap<String, usize>,
    needs: Vec<Vec<usize>>,
    /// For each step a bit for every step before it; none where the steps go round in a circle.
    before: Option<Vec<Vec<u64>>>,
}

impl Graph {
    /// Steps without needs; of those with one id, the first counts.
    pub(super) fn new(ids: Vec<String>) -> Self {
        let places = ids.iter().enumerate().rev().map(|(index, id)| (id.clone(), index)).collect();
        let needs = vec![Vec::new(); ids.len()];
        Self { ids, places, needs, before: None }
    }

    pub(super) fn find(&self, id: &str) -> Option<usize> {
        self.places.get(id).copied()
    }

    pub(super) fn ids(&self) -> &[String] {
        &self.ids
    }

    pub(super) fn need(&mut self, step: usize, needed: usize) {
        if let Some(needs) = self.needs.get_mut(step) {
            needs.push(needed);
        }
    }

    /// Works out what is before each step, or gives one circle: its steps, the first again at the end.
    pub(super) fn close(&mut self) -> Option<Vec<usize>> {
        let words = self.ids.len().div_ceil(64);
        let mut before = vec![vec![0_u64; words]; self.ids.len()];
        let mut done = vec![false; self.ids.len()];
        for start in 0..self.ids.len() {
            // Depth first, by hand: a thousand steps in a row would be a thousand frames.
            let mut path = vec![(start, 0_usize)];
            while let Some(&mut (step, ref mut next)) = path.last_mut() {
                let finished = done.get(step).copied().unwrap_or(true);
                let need = self.needs.get(step).and_then(|needs| needs.get(*next)).copied();
                *next += 1;
                match need {
                    Some(needed) if !finished => {
                        if let Some(from) = path.iter().position(|(on_path, _)| *on_path == needed) {
                            let circle = path.iter().skip(from).map(|(step, _)| *step);
                            return Some(circle.chain([needed]).collect());
                        }
                        path.push((needed, 0));
                    }
                    _ => {
                        if !finished {
                            let bits = self.union(step, &before, words);
                            before.get_mut(step).into_iter().for_each(|place| place.clone_from(&bits));
                            done.get_mut(step).into_iter().for_each(|done| *done = true);
                        }
                        path.pop();
                    }
                }
            }
        }
        self.before = Some(before);
        None
    }

    fn union(&self, step: usize, before: &[Vec<u64>], words: usize) -> Vec<u64> {
        let mut bits = vec![0_u64; words];
        for &needed in self.needs.get(step).into_iter().flatten() {
            if let Some(inherited) = before.get(needed) {
                bits.iter_mut().zip(inherited).for_each(|(bit, other)| *bit |= other);
            }
            bits.get_mut(needed / 64).into_iter().for_each(|word| *word |= 1 << (needed % 64));
        }
        bits
    }

    /// Whether `other` has surely ended when `step` begins; yes where a circle hides the answer.
    pub(super) fn is_before(&self, other: usize, step: usize) -> bool {
        let Some(before) = &self.before else { return true };
        before.get(step).and_then(|bits| bits.get(other / 64)).is_some_and(|word| word & (1 << (other % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(needs: &[(usize, usize)], steps: usize) -> Graph {
        let mut graph = Graph::new((0..steps).map(|n| format!("s{n}")).collect());
        needs.iter().for_each(|(step, needed)| graph.need(*step, *needed));
        graph
    }

    #[test]
    fn what_is_before_is_transitive() {
        let mut graph = graph(&[(99, 70), (70, 3), (3, 0), (5, 99)], 100);
        assert_eq!(graph.close(), None);
        assert!(graph.is_before(0, 5) && graph.is_before(70, 99));
        assert!(!graph.is_before(5, 0) && !graph.is_before(1, 99));
    }

    #[test]
    fn a_circle_is_given_in_order() {
        assert_eq!(graph(&[(0, 1), (1, 2), (2, 3), (3, 1)], 4).close(), Some(vec![1, 2, 3, 1]));
    }

    #[test]
    fn a_ladder_of_diamonds_is_walked_once() {
        let rungs: Vec<_> = (0..240)
            .flat_map(|n| [(2 * n, 2 * n + 2), (2 * n, 2 * n + 3), (2 * n + 1, 2 * n + 2), (2 * n + 1, 2 * n + 3)])
            .collect();
        let mut graph = graph(&rungs, 482);
        assert_eq!(graph.close(), None);
        assert!(graph.is_before(481, 0));
    }
}
