//! A gRPC stream that tells what the view answers, each time the answer changes.
//!
//! The stream is pulled by the transport and looks at the state only when the client can take more: no queue stands
//! between the two, and a client that was slow gets the latest answer, not the history.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use hawser_proxy_api::{WAIT, WAITS};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::{Code, Response, Status};

use crate::view::{Changed, State, Topics, View};

pub type Updates<U> = Pin<Box<dyn Stream<Item = Result<U, Status>> + Send>>;

struct Follow<T, U, L, D> {
    view: Arc<View>,
    look: L,
    diff: D,
    last: Option<T>,
    pending: VecDeque<U>,
    changed: Option<Changed>,
}

/// Follows what `look` answers; `diff` says what to send when one answer replaces another (or is the first).
///
/// A question that is refused from the start is refused as the call's own status, because some clients tell that apart
/// from a stream that breaks. The stream ends when the process drains; clients then ask its replacement.
pub fn follow<T, U, L, D>(
    view: Arc<View>,
    drain: CancellationToken,
    look: L,
    diff: D,
) -> Result<Updates<U>, Status>
where
    T: Send + 'static,
    U: Send + 'static,
    L: Fn(&State, &mut Topics) -> Result<T, Status> + Send + 'static,
    D: Fn(Option<&T>, &T) -> Vec<U> + Send + 'static,
{
    let (first, changed) = view.observe(&look);
    Ok(start(view, drain, look, diff, first?, changed))
}

/// The same, with whole answers, for clients that may have been refused before: one that says so `waits`, hears the same
/// again only after [`WAIT`], and until then of any other answer at once.
pub async fn or_wait<T, L>(
    waits: bool,
    view: Arc<View>,
    drain: CancellationToken,
    look: L,
) -> Result<Response<Updates<T>>, Status>
where
    T: Clone + PartialEq + Send + Sync + 'static,
    L: Fn(&State, &mut Topics) -> Result<T, Status> + Send + 'static,
{
    let until = Instant::now() + if waits { WAIT } else { Duration::ZERO };
    loop {
        let (first, changed) = view.observe(&look);
        let mut refused = match first {
            Ok(first) => return Ok(Response::new(start(view, drain, look, whole, first, changed))),
            Err(status) => status,
        };
        // What is not found is asked about by everybody, and rarely comes.
        if refused.code() != Code::NotFound {
            refused
                .metadata_mut()
                .insert(WAITS, MetadataValue::from_static("true"));
        }
        if Instant::now() >= until {
            return Err(refused);
        }
        tokio::select! {
            () = changed.wait() => {}
            () = tokio::time::sleep_until(until) => return Err(refused),
            () = drain.cancelled() => return Err(Status::unavailable("shutting down")),
        }
    }
}

fn start<T, U, L, D>(
    view: Arc<View>,
    drain: CancellationToken,
    look: L,
    diff: D,
    first: T,
    changed: Changed,
) -> Updates<U>
where
    T: Send + 'static,
    U: Send + 'static,
    L: Fn(&State, &mut Topics) -> Result<T, Status> + Send + 'static,
    D: Fn(Option<&T>, &T) -> Vec<U> + Send + 'static,
{
    let pending = diff(None, &first).into();
    let follow = Follow {
        view,
        look,
        diff,
        last: Some(first),
        pending,
        changed: Some(changed),
    };
    let updates = stream::unfold(follow, |mut follow| async move {
        loop {
            if let Some(update) = follow.pending.pop_front() {
                return Some((Ok(update), follow));
            }
            // Absent after an error, which ends the stream.
            follow.changed.take()?.wait().await;
            let (answer, changed) = follow.view.observe(&follow.look);
            match answer {
                Err(status) => return Some((Err(status), follow)),
                Ok(answer) => {
                    follow.pending = (follow.diff)(follow.last.as_ref(), &answer).into();
                    follow.last = Some(answer);
                    follow.changed = Some(changed);
                }
            }
        }
    });
    updates.take_until(drain.cancelled_owned()).boxed()
}

/// For answers that are sent whole.
pub fn whole<T: Clone + PartialEq>(old: Option<&T>, new: &T) -> Vec<T> {
    if old == Some(new) {
        vec![]
    } else {
        vec![new.clone()]
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::view::objects::Service;
    use crate::view::{Change, Key, Topic};

    fn exists(view: &Arc<View>, drain: &CancellationToken) -> Updates<bool> {
        let key = Key::new("test", "web");
        let look = move |state: &State, topics: &mut Topics| {
            topics.insert(Topic::Service(key.clone()));
            Ok(state.service(&key).is_some())
        };
        follow(view.clone(), drain.clone(), look, whole).unwrap()
    }

    fn set(view: &View, service: Option<Service>) {
        view.apply(Change::Service(Key::new("test", "web"), service));
    }

    #[test]
    fn a_slow_client_gets_the_latest_answer_and_nothing_twice() {
        let (view, drain) = (Arc::new(View::default()), CancellationToken::new());
        let mut updates = exists(&view, &drain);
        assert_eq!(
            updates.next().now_or_never().flatten().map(Result::unwrap),
            Some(false)
        );
        set(&view, Some(Service::default()));
        set(&view, None);
        assert!(
            updates.next().now_or_never().is_none(),
            "back to what the client knows"
        );
        set(&view, Some(Service::default()));
        assert_eq!(
            updates.next().now_or_never().flatten().map(Result::unwrap),
            Some(true)
        );
    }

    #[test]
    fn draining_ends_the_stream_quietly() {
        let (view, drain) = (Arc::new(View::default()), CancellationToken::new());
        let mut updates = exists(&view, &drain);
        assert!(updates.next().now_or_never().is_some());
        drain.cancel();
        assert!(matches!(updates.next().now_or_never(), Some(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_hears_of_another_answer_at_once_and_of_the_same_in_the_end() {
        let view = Arc::new(View::default());
        let ask = || {
            let key = Key::new("test", "web");
            let look = move |state: &State, topics: &mut Topics| {
                topics.insert(Topic::Service(key.clone()));
                let refused = || Status::failed_precondition("not exported");
                state.service(&key).map(|_| true).ok_or_else(refused)
            };
            let view = view.clone();
            move |waits| or_wait(waits, view, CancellationToken::new(), look)
        };
        let began = Instant::now();
        let refused = ask()(false).await.map(drop).unwrap_err();
        assert!(refused.metadata().contains_key(WAITS));
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert!(ask()(true).await.is_err());
        assert_eq!(began.elapsed(), WAIT);
        let (answer, ()) = tokio::join!(ask()(true), async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            set(&view, Some(Service::default()));
        });
        let mut updates = answer.unwrap().into_inner();
        assert_eq!(updates.next().await.map(Result::unwrap), Some(true));
        assert_eq!(began.elapsed(), WAIT + Duration::from_secs(5));
    }

    #[test]
    fn a_refused_question_is_refused_by_the_call_itself() {
        let look = |_: &State, _: &mut Topics| Err::<bool, _>(Status::not_found("nothing"));
        assert!(follow(Arc::default(), CancellationToken::new(), look, whole).is_err());
    }
}
