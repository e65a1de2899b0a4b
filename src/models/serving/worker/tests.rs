//! Tests of `worker`.

use std::sync::{Condvar, Mutex};

use super::*;
use crate::engine::{EngineError, Precision};
use crate::models::serving::queue::{ReplyFuture, wait};
use crate::models::{Flow, Owner, Priority, Ticket};

type Meet = Box<dyn Fn(&[u32]) + Send + Sync>;

/// Model whose vector of a text is its first id, twice. The id [`BAD`] cannot be computed.
struct Fake {
    passes: Arc<Mutex<Vec<Vec<u32>>>>,
    report: PrecisionReport,
    /// Called in each pass with the first ids of its texts.
    meet: Meet,
}

impl Default for Fake {
    fn default() -> Self {
        let report =
            PrecisionReport { precision: Precision::F32, isa: "none", reason: String::new() };
        Self { passes: Arc::default(), report, meet: Box::new(|_| {}) }
    }
}

const BAD: u32 = 666;

impl Embedder for Fake {
    fn compute(&self, texts: &[&[u32]], output: Output) -> Result<Vec<f32>, EngineError> {
        let firsts: Vec<u32> = texts.iter().map(|text| text[0]).collect();
        self.passes.lock().unwrap().push(firsts.clone());
        (self.meet)(&firsts);
        if firsts.contains(&BAD) {
            return Err(EngineError::NotFinite { precision: "f32" });
        }
        Ok(match output {
            Output::TokenStates => texts.concat().iter().map(|id| *id as f32).collect(),
            _ => firsts.iter().flat_map(|first| [*first as f32; 2]).collect(),
        })
    }

    fn dimensions(&self) -> usize {
        2
    }

    fn weight_bytes(&self) -> u64 {
        0
    }

    fn mapped_bytes(&self) -> u64 {
        0
    }

    fn release_scratch(&self) {
        self.passes.lock().unwrap().push(Vec::new());
    }

    fn matrix_peak(&self) -> io::Result<f64> {
        Ok(0.0)
    }

    fn report(&self) -> &PrecisionReport {
        &self.report
    }

    fn matrix_operations(&self, _tokens: usize) -> u64 {
        0
    }
}

const LIMITS: QueueLimits =
    QueueLimits { requests: 100, tokens: 10_000, wait: Duration::ZERO, batches: 1 };

/// Computes the requests in `queue` until it has ended.
fn serve(model: impl Embedder + 'static, queue: QueueReceiver, budget: usize) {
    let (tokens, metrics) = (AtomicUsize::new(budget), Metrics::new(&[]));
    let (embedder, pulse): (Box<dyn Embedder>, _) = (Box::new(model), PassTracker::default());
    let (tokens, pass_tracker, metrics) = (&tokens, &pulse, &metrics);
    ModelServer { embedder, name: "m@1", tokens, pass_tracker, metrics }.serve(queue);
}

type Vectors = Result<Vec<f32>, String>;

/// Requests that wait for a worker which is not started yet.
struct Waiting {
    sender: QueueSender,
    receiver: QueueReceiver,
    answers: Vec<Option<ReplyFuture>>,
}

impl Waiting {
    fn new() -> Self {
        let (sender, receiver) = queue::channel(LIMITS);
        Self { sender, receiver, answers: Vec::new() }
    }

    /// Sends a request of texts that each repeat one id `length` times.
    fn ask(&mut self, ids: &[u32], length: usize, priority: Priority) {
        self.ask_for(Output::Vector, ids, length, priority);
    }

    fn ask_for(&mut self, output: Output, ids: &[u32], length: usize, priority: Priority) {
        let texts = ids.iter().map(|id| vec![*id; length]).collect();
        let ticket = Ticket {
            flow: Flow { owner: Owner::Tenant(self.answers.len() as u64), connection: 0 },
            priority: Some(priority),
            deadline: Instant::now() + Duration::from_secs(1000),
            tenant: None,
            weight: 1,
        };
        let answer = self.sender.push(texts, output, &ticket).unwrap();
        self.answers.push(Some(answer));
    }

    /// Runs a worker with passes of `budget` tokens until all requests are done. Returns its
    /// passes, and the answers.
    fn serve(self, budget: usize) -> (Vec<Vec<u32>>, Vec<Option<Vectors>>) {
        let fake = Fake::default();
        let passes = Arc::clone(&fake.passes);
        drop(self.sender);
        serve(fake, self.receiver, budget);
        let answers = self.answers.into_iter().map(|answer| {
            let answer = wait(answer?).unwrap();
            Some(answer.map(|computed| computed.vectors).map_err(|error| error.to_string()))
        });
        (std::mem::take(&mut passes.lock().unwrap()), answers.collect())
    }
}

#[test]
fn requests_share_a_pass_but_not_vectors() {
    let mut waiting = Waiting::new();
    waiting.ask(&[1, 2], 3, Priority::Interactive);
    waiting.ask(&[3], 3, Priority::Interactive);
    waiting.ask(&[4, 5], 3, Priority::Interactive);
    let (passes, answers) = waiting.serve(10);
    assert_eq!(passes, [vec![1, 2, 3], vec![4, 5]]);
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().unwrap()).collect();
    assert_eq!(answers, [vec![1., 1., 2., 2.], vec![3., 3.], vec![4., 4., 5., 5.]]);
}

#[test]
fn different_outputs_do_not_share_a_pass() {
    let mut waiting = Waiting::new();
    waiting.ask(&[1], 1, Priority::Interactive);
    waiting.ask_for(Output::TokenStates, &[2, 3], 3, Priority::Interactive);
    waiting.ask_for(Output::TokenStates, &[4], 2, Priority::Interactive);
    waiting.ask(&[5], 1, Priority::Interactive);
    let (passes, answers) = waiting.serve(100);
    assert_eq!(passes, [vec![1], vec![2, 3, 4], vec![5]]);
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().unwrap()).collect();
    let expected = [vec![1., 1.], vec![2., 2., 2., 3., 3., 3.], vec![4., 4.], vec![5., 5.]];
    assert_eq!(answers, expected);
}

#[test]
fn liveness_pass_runs_before_waiting_requests() {
    let mut waiting = Waiting::new();
    waiting.ask(&[1, 2], 3, Priority::Interactive);
    let proof = waiting.sender.probe();
    let (passes, _) = waiting.serve(10);
    assert_eq!(passes, [vec![ANY_TOKEN], vec![1, 2]]);
    assert_eq!(proof.blocking_recv(), Ok(()));
}

#[test]
fn long_requests_are_computed_in_alternating_parts() {
    let mut waiting = Waiting::new();
    waiting.ask(&[1, 2, 3, 4, 5], 4, Priority::Bulk);
    waiting.ask(&[6, 7, 8], 4, Priority::Bulk);
    let (passes, answers) = waiting.serve(8);
    assert_eq!(passes, [vec![1, 2], vec![6, 7], vec![3, 4], vec![8, 5]]);
    let first = answers[0].as_ref().unwrap().as_ref().unwrap();
    assert_eq!(first, &[1., 1., 2., 2., 3., 3., 4., 4., 5., 5.]);
}

#[test]
fn failing_request_does_not_affect_others() {
    let mut waiting = Waiting::new();
    waiting.ask(&[1], 1, Priority::Interactive);
    waiting.ask(&[2, BAD], 1, Priority::Interactive);
    waiting.ask(&[3], 1, Priority::Interactive);
    let (_, answers) = waiting.serve(10);
    let ok: Vec<bool> = answers.into_iter().map(|answer| answer.unwrap().is_ok()).collect();
    assert_eq!(ok, [true, false, true]);
}

#[test]
fn batches_are_computed_in_parallel() {
    let mut waiting = Waiting::new();
    for id in 1..=3 {
        waiting.ask(&[id], 4, Priority::Interactive);
    }
    // No pass ends before there are three.
    let (passes, came) = (Mutex::new(0), Condvar::new());
    let meet = move |_: &[u32]| {
        let mut passes = passes.lock().unwrap();
        *passes += 1;
        came.notify_all();
        let (patience, alone) = (Duration::from_secs(60), |passes: &mut usize| *passes < 3);
        let (passes, waited) = came.wait_timeout_while(passes, patience, alone).unwrap();
        assert!(!waited.timed_out(), "{} passes at a time", *passes);
    };
    waiting.sender.set_limits(QueueLimits { batches: 3, ..LIMITS });
    drop(waiting.sender);
    serve(Fake { meet: Box::new(meet), ..Fake::default() }, waiting.receiver, 4);
    for (answer, id) in waiting.answers.into_iter().zip([1.0, 2.0, 3.0]) {
        let answer = wait(answer.unwrap()).unwrap().unwrap();
        assert_eq!(answer.vectors, [id; 2]);
    }
}

#[test]
fn panic_in_one_batch_ends_the_worker() {
    let mut waiting = Waiting::new();
    waiting.ask(&[BAD], 1, Priority::Interactive);
    let Waiting { sender, receiver, mut answers } = waiting;
    sender.set_limits(QueueLimits { batches: 3, ..LIMITS });
    let panics = |firsts: &[u32]| assert!(!firsts.contains(&BAD), "a bad id");
    let fake = Fake { meet: Box::new(panics), ..Fake::default() };
    // The sender still exists, so that only the panic can end it.
    assert!(thread::spawn(move || serve(fake, receiver, 1)).join().is_err());
    assert!(wait(answers[0].take().unwrap()).is_err());
    assert!(sender.is_closed());
}

#[test]
fn cancelled_request_is_not_computed() {
    let mut waiting = Waiting::new();
    waiting.ask(&[1], 1, Priority::Interactive);
    waiting.ask(&[2], 1, Priority::Interactive);
    waiting.answers[0] = None;
    let (passes, answers) = waiting.serve(10);
    assert_eq!(passes, [vec![2]]);
    assert!(answers[0].is_none() && answers[1].as_ref().unwrap().is_ok());
}

#[test]
fn scratch_memory_is_released_before_the_next_pass() {
    let mut waiting = Waiting::new();
    waiting.ask(&[1], 1, Priority::Interactive);
    let released = waiting.sender.release_scratch();
    let (passes, _) = waiting.serve(10);
    assert_eq!(passes, [vec![], vec![1]]);
    assert_eq!(released.blocking_recv(), Ok(()));
}

#[test]
fn pass_keeps_budget_but_is_never_empty() {
    let texts: Vec<Vec<u32>> = [3, 3, 5, 9, 1, 1].map(|length| vec![0; length]).into();
    let firsts = [0, 2, 3, 4].map(|first| texts_in_pass(&texts[first..], 6));
    assert_eq!(firsts, [2, 1, 1, 2]);
    assert_eq!(texts_in_pass(&[], 6), 0);
}
