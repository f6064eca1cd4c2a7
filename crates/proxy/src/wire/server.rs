//! The answering side of a link. Requests are handled inside the connection's task, each in a slot that is used again.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::Full;

use crate::body::{Body, OnEnd};
use crate::message::{Request, Response};
use crate::transport::Conn;

use super::link::{Link, Shared, Side};
use super::mover::{Mover, Turn};
use super::slots::{Inbox, Slots};
use super::{Incoming, Options, Receiving, reason_of, send_body};

/// Serves a connection until it ends, or until what is under way has ended after `drain`.
pub(crate) async fn serve<H, F, E>(conn: Conn, options: Options, drain: &hawser_runtime::Shutdown, handle: H)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<Body<E>>, h2::Error>>,
    E: OnEnd + Unpin,
{
    let link = Rc::new(RefCell::new(Link::new(Side::Server, options)));
    let mut mover = Mover::new(conn, link.clone(), Side::Server, options.keepalive);
    let handle = &handle;
    let mut slots = Slots::new(|inbox: Inbox<(u32, Request<Incoming>)>| {
        let link = link.clone();
        async move {
            loop {
                let (id, request) = inbox.next().await;
                answer(&link, id, handle, request).await;
            }
        }
    });
    let mut drained = pin!(drain.cancelled());
    let mut draining = false;
    poll_fn(|cx| {
        link.borrow_mut().begin_turn(cx);
        let more = mover.take_in(cx);
        if !draining && drained.as_mut().poll(cx).is_ready() {
            draining = true;
            link.borrow_mut().leave();
        }
        loop {
            let accepted = link.borrow_mut().next_accepted();
            let Some((id, request)) = accepted else { break };
            let body = Receiving {
                link: link.clone(),
                id,
            };
            slots.begin(id, (id, request.map(|()| body.body())));
        }
        loop {
            let cancelled = link.borrow_mut().next_cancelled();
            let Some(id) = cancelled else { break };
            slots.cancel(id);
        }
        slots.poll(cx);
        let turn = mover.give_out(more, cx);
        link.borrow_mut().end_turn();
        match turn {
            Turn::Over => {
                slots.clear();
                mover.shut_down(cx);
                return Poll::Ready(());
            }
            Turn::More => cx.waker().wake_by_ref(),
            Turn::Wait => {}
        }
        Poll::Pending
    })
    .await;
}

/// One request, until its answer has been written.
async fn answer<H, F, E>(link: &Shared, id: u32, handle: &H, request: Request<Incoming>)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<Body<E>>, h2::Error>>,
    E: OnEnd + Unpin,
{
    match handle(request).await {
        Ok(response) => {
            let Response {
                status,
                head,
                mut body,
                ..
            } = response;
            let whole = body.take_whole();
            let end = whole
                .as_ref()
                .map_or_else(|| body.is_end_stream(), Bytes::is_empty);
            link.borrow_mut().respond(id, status, &head, end);
            drop(head);
            match whole {
                _ if end => {}
                Some(content) => {
                    let sent = link.borrow_mut().send_whole(id, &content);
                    if !sent {
                        send_body(link, id, Full::new(content)).await;
                    }
                }
                None => send_body(link, id, body).await,
            }
        }
        Err(error) => {
            let _ = link.borrow_mut().reset(id, reason_of(&error));
        }
    }
    link.borrow_mut().finish(id);
}

use std::future::Future;
