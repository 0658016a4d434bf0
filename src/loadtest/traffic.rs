//! Requests at their intended times (an open loop), and requests that follow each other (a closed loop).

use crate::loadtest::Schedule;
use crate::loadtest::client::{Call, Client, Reply};
use crate::{Error, Result};
use axum::http::StatusCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

/// From the start of a run to time 0 of its schedule: enough to put every request on its task.
const LEAD: Duration = Duration::from_millis(200);
/// A closed loop sees so many rounds of all its clients at least: images finish in lumps as large as a batch.
const ROUNDS: usize = 3;
/// It may take so many times as long as it was told for them.
const PATIENCE: u32 = 12;

/// What became of one request. Times are from time 0 of the schedule.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it should have gone out.
    pub intended: Duration,
    /// When it did. Not later than it ended: one that never went out waited for a connection until then.
    pub sent: Duration,
    /// When its last byte came, or it failed or was given up.
    pub ended: Duration,
    /// Which of the calls it was.
    pub call: usize,
    /// The answer; `None` when it was given up.
    pub answer: Option<std::result::Result<Reply, String>>,
}

impl Sample {
    /// The answer, if it is an image.
    pub fn image(&self) -> Option<&Reply> {
        self.answer.as_ref()?.as_ref().ok().filter(|reply| reply.status == StatusCode::OK)
    }

    /// From the intended send time to the end.
    pub fn latency(&self) -> Duration {
        self.ended - self.intended
    }
}

/// Sends a request at every time of `schedule`, whatever the earlier ones do, the `calls` in turn. Each is given up
/// `patience` after its intended time.
pub async fn open_loop(client: &Arc<Client>, schedule: &Schedule, calls: &[Call], patience: Duration) -> Vec<Sample> {
    let start = Instant::now() + LEAD;
    let mut tasks = JoinSet::new();
    for (index, &intended) in schedule.times().iter().enumerate() {
        let (client, call) = (client.clone(), index % calls.len());
        let request = calls[call].clone();
        tasks.spawn(async move {
            sleep_until(start + intended).await;
            let woken = Instant::now();
            let answer = timeout_at(start + intended + patience, client.send(&request)).await.ok();
            let ended = match &answer {
                Some(Ok(reply)) => reply.received,
                _ => Instant::now(),
            };
            let sent = match &answer {
                Some(Ok(reply)) => reply.sent,
                _ => woken,
            };
            Sample { intended, sent: sent - start, ended: ended - start, call, answer }
        });
    }
    let mut samples = tasks.join_all().await;
    samples.sort_by_key(|sample| sample.intended);
    samples
}

/// Keeps `clients` pieces of `work` going for about `window`, each followed by another as it ends, and returns how many
/// end in a second. `work` gets a number that counts up.
///
/// # Errors
/// The first piece that fails; work so slow that even twelve windows hold no three pieces of every client.
pub async fn closed_loop<F>(
    clients: usize,
    window: Duration,
    work: impl Fn(usize) -> F + Clone + Send + 'static,
) -> Result<f64>
where
    F: Future<Output = Result<()>> + Send,
{
    let (done, mut ended) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for client in 0..clients {
        let (done, work) = (done.clone(), work.clone());
        tasks.spawn(async move {
            for turn in 0.. {
                let outcome = work(turn * clients + client).await.map(|()| start.elapsed().as_secs_f64());
                let failed = outcome.is_err();
                if done.send(outcome).is_err() || failed {
                    return;
                }
            }
        });
    }
    let mut times = Vec::new();
    let limit = start + PATIENCE * window;
    while start.elapsed() < window || times.len() < ROUNDS * clients {
        let Ok(Some(outcome)) = timeout_at(limit, ended.recv()).await else {
            let seconds = (PATIENCE * window).as_secs_f64();
            return Err(Error::input(
                "--capacity-seconds",
                format!("{} of {} images were drawn in {seconds} s: give more", times.len(), ROUNDS * clients),
            ));
        };
        times.push(outcome?);
    }
    // What is under way is cancelled as the tasks are dropped: the tail of a run is no saturated system.
    Ok(rate(&times))
}

/// Events a second: the slope of their count over time by least squares, which lumps at even distances do not bias.
/// `times` are ascending, in seconds.
fn rate(times: &[f64]) -> f64 {
    let n = times.len() as f64;
    let (mean_time, mean_count) = (times.iter().sum::<f64>() / n, (n - 1.0) / 2.0);
    let both = times.iter().enumerate().map(|(i, time)| (time - mean_time) * (i as f64 - mean_count)).sum::<f64>();
    both / times.iter().map(|time| (time - mean_time).powi(2)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::Barrier;

    #[test]
    fn lumps_do_not_bias_a_rate() {
        let even: Vec<f64> = (0..50).map(|i| 3.0 + f64::from(i) / 20.0).collect();
        assert!((rate(&even) - 20.0).abs() < 1e-9);
        for lumps in [2, 3, 7] {
            let times: Vec<f64> = (0..lumps * 16).map(|i| f64::from(1 + i / 16) * 0.8).collect();
            assert!((rate(&times) - 20.0).abs() < 1e-9, "{lumps}");
        }
    }

    /// A server that answers nothing before it has `together` requests at once, and closes every connection after one
    /// answer. Returns where it listens.
    async fn crowd(together: usize) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let barrier = Arc::new(Barrier::new(together));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let barrier = barrier.clone();
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                        if stream.read_buf(&mut request).await.unwrap() == 0 {
                            return;
                        }
                    }
                    barrier.wait().await;
                    stream.write_all(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
                });
            }
        });
        address
    }

    fn schedule(ms: impl IntoIterator<Item = u64>) -> Schedule {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines: Vec<String> = ms.into_iter().map(|ms| format!("{}", ms as f64 / 1e3)).collect();
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        Schedule::read(file.path(), Duration::ZERO).unwrap()
    }

    #[tokio::test]
    async fn requests_of_an_open_loop_do_not_wait_for_each_other_s_answers() {
        let address = crowd(20).await;
        // Fewer connections than requests: the others are opened.
        let client = Arc::new(Client::connect(address, 5).await.unwrap());
        let schedule = schedule((0..20).map(|i| 2 * i));
        let samples = open_loop(&client, &schedule, &[Call::get("/a"), Call::get("/b")], Duration::from_secs(60)).await;
        assert_eq!(samples.iter().map(|sample| sample.intended).collect::<Vec<_>>(), schedule.times());
        for (index, sample) in samples.iter().enumerate() {
            assert_eq!(sample.call, index % 2);
            assert_eq!(sample.answer.as_ref().unwrap().as_ref().unwrap().status, StatusCode::TOO_MANY_REQUESTS);
            assert!(sample.intended <= sample.sent && sample.sent <= sample.ended && sample.image().is_none());
        }
    }

    #[tokio::test]
    async fn a_request_without_an_answer_is_given_up_in_the_end() {
        let address = crowd(2).await;
        let client = Arc::new(Client::connect(address, 1).await.unwrap());
        let patience = Duration::from_millis(20);
        let samples = open_loop(&client, &schedule([5]), &[Call::get("/")], patience).await;
        assert!(samples[0].answer.is_none() && samples[0].latency() >= patience);
    }

    #[tokio::test]
    async fn a_connection_that_the_server_has_closed_is_replaced() {
        let client = Client::connect(crowd(1).await, 3).await.unwrap();
        for _ in 0..6 {
            assert_eq!(client.send(&Call::get("/")).await.unwrap().code(), "429");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_counts_what_its_clients_end() {
        let work = |_| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(())
        };
        let rate = closed_loop(4, Duration::from_secs(2), work).await.unwrap();
        assert!((rate - 40.0).abs() < 1.0, "{rate}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_ends_with_the_first_failure_and_when_its_work_never_does() {
        let failing = |index| async move { if index < 6 { Ok(()) } else { Err(Error::input("x", "broke")) } };
        assert_eq!(closed_loop(4, Duration::from_secs(2), failing).await.unwrap_err().to_string(), "x: broke");
        let never = |_| std::future::pending();
        let message = closed_loop(4, Duration::from_secs(2), never).await.unwrap_err().to_string();
        assert!(message.contains("0 of 12 images were drawn in 24 s"), "{message}");
    }
}
