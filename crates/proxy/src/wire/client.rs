//! The requesting side of a link: every request of a worker to one endpoint shares it.

use std::cell::RefCell;
use std::future::{Future as _, poll_fn};
use std::rc::Rc;
use std::task::Poll;

use http::Version;
use http_body::Body as _;

use crate::message::{Request, Response};
use crate::outbound::replay::RequestBody;
use crate::transport::Conn;

use super::link::{Link, Shared, Side};
use super::mover::{Mover, Turn};
use super::{Fault, Incoming, Options, Receiving, send_body};

/// Opens streams. The connection ends when nobody holds one of these and nothing is under way.
#[derive(Clone, Debug)]
pub(crate) struct Client(Rc<Handle>);

#[derive(Debug)]
struct Handle(Shared);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.borrow_mut().abandon();
    }
}

impl Client {
    /// Takes over a connection.
    pub(crate) fn start(conn: Conn, options: Options) -> Self {
        let link = Rc::new(RefCell::new(Link::new(Side::Client, options)));
        let mut mover = Mover::new(conn, link.clone(), Side::Client, options.keepalive);
        let client = Self(Rc::new(Handle(link.clone())));
        tokio::task::spawn_local(poll_fn(move |cx| {
            link.borrow_mut().begin_turn(cx);
            let more = mover.take_in(cx);
            let turn = mover.give_out(more, cx);
            link.borrow_mut().end_turn();
            match turn {
                Turn::Over => {
                    mover.shut_down(cx);
                    return Poll::Ready(());
                }
                Turn::More => cx.waker().wake_by_ref(),
                Turn::Wait => {}
            }
            Poll::Pending
        }));
        client
    }

    /// Do no new requests go here?
    pub(crate) fn is_closed(&self) -> bool {
        self.0.0.borrow().is_closed()
    }

    /// Sends a request and waits for its answer's head; all but the body stays where it is. Giving up resets the stream.
    pub(crate) async fn send(&self, request: &mut Request<RequestBody>) -> Result<Response<Incoming>, Fault> {
        let link = &self.0.0;
        poll_fn(|cx| link.borrow_mut().poll_open(cx)).await?;
        let end = request.body.is_end_stream();
        let id = link.borrow_mut().open(request, end);
        let receiving = Receiving {
            link: link.clone(),
            id,
        };
        if !end {
            let (link, body) = (link.clone(), request.body.take());
            let mut sending = Box::pin(async move { send_body(&link, id, body).await });
            // A body that is here already needs no task.
            let pending = poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx).is_pending())).await;
            if pending {
                tokio::task::spawn_local(sending);
            }
        }
        let answer = poll_fn(|cx| link.borrow_mut().poll_answer(id, cx)).await?;
        Ok(Response {
            status: answer.status,
            head: answer.head,
            ..Response::new(Version::HTTP_2, receiving.body())
        })
    }
}
