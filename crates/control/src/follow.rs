//! A gRPC stream that tells what the view answers, each time the answer changes.
//!
//! The stream is pulled by the transport and looks at the state only when the client can take more: no queue stands
//! between the two, and a client that was slow gets the latest answer, not the history.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tonic::Status;

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
    let first = first?;
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
    Ok(updates.take_until(drain.cancelled_owned()).boxed())
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

    #[test]
    fn a_refused_question_is_refused_by_the_call_itself() {
        let look = |_: &State, _: &mut Topics| Err::<bool, _>(Status::not_found("nothing"));
        assert!(follow(Arc::default(), CancellationToken::new(), look, whole).is_err());
    }
}
