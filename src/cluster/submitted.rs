//! A job that was submitted, as its driver knows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::job::{ANSWERS, Answer, Answered, DRIVER, Order, SAID, Said, Sign, Ticket, name};
use crate::engine::{
    Result,
    run::{Death, Update},
    store::JobFolder,
};

/// The interval of the signs of life.
const BEAT: Duration = Duration::from_secs(5);

/// The function that hears the news of tasks.
pub(super) type Listener<'a> = dyn FnMut(Update) -> Result<()> + 'a;

/// A job that was submitted.
pub(super) struct Submitted {
    pub(super) folder: JobFolder,
    pub(super) order: Order,
    tickets: Vec<Ticket>,
    /// The name that the scheduler has given it.
    pub(super) name: String,
    /// The tasks without an answer.
    pub(super) open: BTreeSet<usize>,
    /// Reports of long tasks that were passed on already: the number of lines, and the last beat, by task.
    told: BTreeMap<usize, (usize, u64)>,
    /// The time at which its tasks began to be gathered.
    pub(super) began: Instant,
    /// The time of the last answer, report or submission.
    pub(super) news: Instant,
    /// The time at which the scheduler was asked, and that since which it is silent.
    pub(super) asked: Instant,
    pub(super) silent: Option<Instant>,
    beat: u64,
    beaten: Instant,
}

impl Submitted {
    pub(super) fn new(folder: JobFolder, order: Order, tickets: Vec<Ticket>, name: String, began: Instant) -> Self {
        let (open, now) = ((0..tickets.len()).collect(), Instant::now());
        let (news, asked, beaten) = (now, now, now);
        Self {
            folder,
            order,
            tickets,
            name,
            open,
            told: BTreeMap::new(),
            began,
            news,
            asked,
            silent: None,
            beat: 0,
            beaten,
        }
    }

    /// Returns the tickets of the open tasks.
    pub(super) fn open_tickets(&self) -> Vec<Ticket> {
        self.tickets.iter().filter(|ticket| self.open.contains(&ticket.number)).copied().collect()
    }

    /// Gives a sign of life, and asks running tasks to stop if the job is given up.
    pub(super) fn beat(&mut self, stops: bool) -> Result<()> {
        self.beat += 1;
        self.beaten = Instant::now();
        self.folder.seal(DRIVER, &Sign { beat: self.beat, stops })
    }

    /// Gives a sign of life if the last one is some seconds old.
    pub(super) fn beat_sometimes(&mut self) -> Result<()> {
        if self.beaten.elapsed() > BEAT { self.beat(false) } else { Ok(()) }
    }

    /// Reads new answers, and if asked what long tasks have reported. Returns true if there was an answer.
    ///
    /// # Errors
    /// The first error of a task, or of `on`. Later answers stay unheard.
    pub(super) fn hear(&mut self, reports: bool, taken: usize, on: &mut Listener<'_>) -> Result<bool> {
        if reports {
            for (number, said) in self.said()? {
                self.tell(number, said, taken, on)?;
            }
        }
        let answers = self.answers()?;
        let is_news = !answers.is_empty();
        for (number, Answered { answer, said }) in answers {
            self.open.remove(&number);
            self.news = Instant::now();
            let executor = said.by.clone();
            self.tell(number, said, taken, on)?;
            let task = taken + number;
            match answer {
                Answer::Done(entries) => on(Update::Done { task, entries })?,
                Answer::Failed(error) => return Err(error.into()),
                Answer::Died { status, is_killed } => {
                    let status = format!("{status}, at {executor}");
                    on(Update::Lost { task, death: Death { status, is_killed } })?;
                }
            }
        }
        Ok(is_news)
    }

    /// Reads new answers of a job that is given up, of which only rows count.
    pub(super) fn hear_results(&mut self, taken: usize, on: &mut Listener<'_>) -> Result<()> {
        for (number, answered) in self.answers()? {
            self.open.remove(&number);
            if let Answer::Done(entries) = answered.answer {
                on(Update::Done { task: taken + number, entries })?;
            }
        }
        Ok(())
    }

    /// Returns true if an open task has reported, and may still run.
    pub(super) fn is_running(&self) -> Result<bool> {
        Ok(!self.numbers(SAID, "")?.is_empty())
    }

    /// Tells that the open tasks are lost.
    pub(super) fn lose(&mut self, why: &str, taken: usize, on: &mut Listener<'_>) -> Result<()> {
        let death = Death { status: format!("the cluster gave its job up: {why}"), is_killed: false };
        let lost = std::mem::take(&mut self.open);
        lost.into_iter().try_for_each(|task| on(Update::Lost { task: taken + task, death: death.clone() }))
    }

    fn answers(&self) -> Result<Vec<(usize, Answered)>> {
        let Some(first) = self.open.first() else { return Ok(Vec::new()) };
        // Names before that of the first open task need no listing.
        let after = first.checked_sub(1).map_or(String::new(), |before| format!("{before:08}"));
        let numbers = self.numbers(ANSWERS, &after)?;
        let names: Vec<String> = numbers.iter().map(|number| name(ANSWERS, *number)).collect();
        let read = self.folder.open_all::<Answered>(&names)?;
        Ok(numbers.into_iter().zip(read).filter_map(|(number, answered)| Some((number, answered?))).collect())
    }

    fn said(&self) -> Result<Vec<(usize, Said)>> {
        let numbers = self.numbers(SAID, "")?;
        let names: Vec<String> = numbers.iter().map(|number| name(SAID, *number)).collect();
        let read = self.folder.open_all::<Said>(&names)?;
        Ok(numbers.into_iter().zip(read).filter_map(|(number, said)| Some((number, said?))).collect())
    }

    /// Lists the open tasks that have an object in a folder.
    fn numbers(&self, folder: &str, after: &str) -> Result<Vec<usize>> {
        let numbers = self.folder.list_after(folder, after)?.into_iter().filter_map(|name| name.parse().ok());
        Ok(numbers.filter(|number| self.open.contains(number)).collect())
    }

    /// Tells what a task has reported since the last time.
    fn tell(&mut self, number: usize, said: Said, taken: usize, on: &mut Listener<'_>) -> Result<()> {
        let (lines, beat) = self.told.get(&number).copied().unwrap_or_default();
        if said.beat != beat {
            self.news = Instant::now();
        }
        self.told.insert(number, (said.lines(), said.beat));
        said.after(lines).try_for_each(|report| on(Update::Report { task: taken + number, report }))
    }
}
