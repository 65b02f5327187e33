//! Beam search as in transformers: several texts are followed at once, and the likeliest is returned.

use super::{choose::penalise, generate::Finish};
use tch::{Kind, Tensor};

/// A model that continues the beams of one text.
pub trait Beams {
    /// Computes the prompt, and returns the logits of the first token, \[vocabulary\] f32.
    fn start(&mut self) -> Tensor;

    /// Appends `tokens[i]` to a copy of beam `parents[i]`, which becomes beam i, and returns the logits of the next
    /// token of each, [beams, vocabulary] f32. The first call finds one beam, 0; every call has as many tokens.
    fn step(&mut self, tokens: &[i64], parents: &[usize]) -> Tensor;
}

/// The settings of searching a text.
#[derive(Debug, Clone, PartialEq)]
pub struct BeamSearch {
    /// Number of texts that are followed; 1 takes the likeliest token at each step.
    pub beams: usize,
    /// The most tokens of the text.
    pub max_new_tokens: usize,
    /// The fewest tokens before a stop token.
    pub min_new_tokens: usize,
    /// The tokens that end a text.
    pub stop: Vec<i64>,
    /// Scores are divided by the number of tokens to this power; above 0 favours longer texts.
    pub length_penalty: f64,
    /// Divides the likelihood of the tokens that a beam has already; 1 changes nothing.
    pub repetition_penalty: f64,
}

/// The likeliest text that was found.
#[derive(Debug)]
pub struct BeamAnswer {
    /// The tokens, without the stop token.
    pub tokens: Vec<i64>,
    /// The reason for which the text ends.
    pub finish: Finish,
    /// The sum of the logarithms of its tokens' probabilities, divided as [`BeamSearch::length_penalty`] says.
    pub score: f64,
    /// The logits of the first token before any penalty, \[vocabulary\] f32 on the CPU.
    pub first_logits: Tensor,
}

/// A text that is followed.
#[derive(Debug, Clone)]
struct Beam {
    tokens: Vec<i64>,
    /// The sum of the logarithms of the tokens' probabilities.
    score: f64,
}

/// A next token of a beam.
struct Candidate {
    beam: usize,
    token: i64,
    score: f64,
}

impl BeamSearch {
    /// Searches a text.
    pub fn search(&self, model: &mut impl Beams) -> BeamAnswer {
        let _no_grad = tch::no_grad_guard();
        let first_logits = model.start().to_device(tch::Device::Cpu).to_kind(Kind::Float);
        let mut logits = first_logits.unsqueeze(0);
        let mut beams = vec![Beam { tokens: vec![], score: 0. }];
        let mut ended: Vec<(Beam, f64)> = vec![];
        for length in 1..=self.max_new_tokens {
            let candidates = self.candidates(&logits, &beams);
            let best = candidates.first().map_or(f64::NEG_INFINITY, |candidate| candidate.score);
            let mut next: Vec<(Beam, usize)> = vec![];
            for (rank, Candidate { beam, token, score }) in candidates.into_iter().enumerate() {
                let mut tokens = beams[beam].tokens.clone();
                if self.stop.contains(&token) {
                    // An end that is not among the best is no reason to give up a beam.
                    if rank < self.beams {
                        ended.push((Beam { tokens, score }, self.scored(score, length)));
                    }
                    continue;
                }
                tokens.push(token);
                next.push((Beam { tokens, score }, beam));
                if next.len() == self.beams {
                    break;
                }
            }
            self.keep_best(&mut ended);
            beams = next.iter().map(|(beam, _)| beam.clone()).collect();
            let worst = ended.last().map_or(f64::NEG_INFINITY, |(_, score)| *score);
            let is_done = ended.len() >= self.beams && worst >= self.scored(best, length);
            if is_done || next.len() < self.beams || length == self.max_new_tokens {
                if is_done {
                    beams.clear();
                }
                break;
            }
            let last: Vec<i64> = next.iter().filter_map(|(beam, _)| beam.tokens.last().copied()).collect();
            let parents: Vec<usize> = next.iter().map(|(_, parent)| *parent).collect();
            logits = model.step(&last, &parents).to_device(tch::Device::Cpu).to_kind(Kind::Float);
        }
        self.best(ended, beams, first_logits)
    }

    /// Returns a score that does not grow with the length.
    fn scored(&self, score: f64, length: usize) -> f64 {
        score / (length.max(1) as f64).powf(self.length_penalty)
    }

    /// Returns the likeliest next tokens of all beams, the likeliest first: as many that the beams can go on if all
    /// stop tokens are among them.
    fn candidates(&self, logits: &Tensor, beams: &[Beam]) -> Vec<Candidate> {
        let count = self.beams * (1 + self.stop.len()).max(2);
        let mut candidates = vec![];
        for (i, beam) in beams.iter().enumerate() {
            // transformers penalises logarithms of probabilities here, and not logits.
            let log = logits.get(i as i64).log_softmax(-1, Kind::Float); // [vocabulary]
            let mut log = Vec::<f32>::try_from(log).unwrap_or_default();
            if self.repetition_penalty != 1. {
                penalise(&mut log, &beam.tokens, self.repetition_penalty);
            }
            let is_early = beam.tokens.len() < self.min_new_tokens;
            for (token, log) in (0..).zip(log) {
                if !(is_early && self.stop.contains(&token)) {
                    candidates.push(Candidate { beam: i, token, score: beam.score + f64::from(log) });
                }
            }
        }
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
        candidates.truncate(count);
        candidates
    }

    fn keep_best(&self, ended: &mut Vec<(Beam, f64)>) {
        ended.sort_by(|a, b| b.1.total_cmp(&a.1));
        ended.truncate(self.beams);
    }

    /// Returns the best of the texts that have ended and those that were cut off.
    fn best(&self, ended: Vec<(Beam, f64)>, cut: Vec<Beam>, first_logits: Tensor) -> BeamAnswer {
        let ended = ended.into_iter().map(|(beam, score)| (beam, score, Finish::Stop));
        let cut = cut.into_iter().map(|beam| {
            let score = self.scored(beam.score, beam.tokens.len());
            (beam, score, Finish::Length)
        });
        let better = |a: (Beam, f64, Finish), b: (Beam, f64, Finish)| if b.1 > a.1 { b } else { a };
        let none = || (Beam { tokens: vec![], score: 0. }, 0., Finish::Length);
        let (beam, score, finish) = ended.chain(cut).reduce(better).unwrap_or_else(none);
        BeamAnswer { tokens: beam.tokens, finish, score, first_logits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model whose next token depends on the last one alone, by a table of probabilities.
    struct Chain {
        table: Vec<Vec<f64>>,
        /// The tokens of each beam, kept as a network keeps its cache.
        texts: Vec<Vec<i64>>,
    }

    impl Chain {
        fn row(&self, token: usize) -> Tensor {
            Tensor::from_slice(&self.table[token]).log().to_kind(Kind::Float)
        }
    }

    impl Beams for Chain {
        fn start(&mut self) -> Tensor {
            self.texts = vec![vec![]];
            self.row(0)
        }

        fn step(&mut self, tokens: &[i64], parents: &[usize]) -> Tensor {
            let next = |(token, parent): (&i64, &usize)| [&self.texts[*parent][..], &[*token]].concat();
            self.texts = tokens.iter().zip(parents).map(next).collect();
            Tensor::stack(&tokens.iter().map(|token| self.row(*token as usize)).collect::<Vec<_>>(), 0)
        }
    }

    /// Token 3 ends a text. The likeliest first token leads to unlikely ones: 0.6 · 0.4 · 0.5 against 0.4 · 0.9 · 0.9.
    fn chain() -> Chain {
        let table = [[0., 0.6, 0.4, 0.], [0.2, 0.4, 0.2, 0.2], [0.05, 0.02, 0.03, 0.9], [0.25; 4]];
        Chain { table: table.map(Vec::from).to_vec(), texts: vec![] }
    }

    fn search(beams: usize) -> BeamSearch {
        BeamSearch {
            beams,
            max_new_tokens: 4,
            min_new_tokens: 0,
            stop: vec![3],
            length_penalty: 1.,
            repetition_penalty: 1.,
        }
    }

    #[test]
    fn one_beam_takes_the_likeliest_token() {
        let answer = search(1).search(&mut chain());
        assert_eq!((answer.tokens, answer.finish), (vec![1, 1, 1, 1], Finish::Length));
    }

    #[test]
    fn beams_find_the_likelier_text() {
        let answer = search(2).search(&mut chain());
        assert_eq!((answer.tokens, answer.finish), (vec![2], Finish::Stop));
        // two tokens, of which the second ends the text
        assert!((answer.score - (0.4_f64 * 0.9).ln() / 2.).abs() < 1e-6, "{}", answer.score);
        assert_eq!(answer.first_logits.size(), [4]);
    }

    #[test]
    fn a_text_does_not_end_before_its_fewest_tokens() {
        let answer = BeamSearch { min_new_tokens: 3, ..search(3) }.search(&mut chain());
        assert!(answer.tokens.len() >= 3, "{:?}", answer.tokens);
    }
}
