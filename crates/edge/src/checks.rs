//! [`Checks`]: what doors and layers need of an edge, so that they can be tested on a [`FakeEdge`].

use crate::counts::CheckCounts;
use crate::decision::{CheckRequest, Decision};
use crate::edge::Edge;
use crate::fake::FakeEdge;
use crate::status::Status;
use std::future::Future;
use std::sync::Arc;

/// See the module's text.
pub trait Checks: Clone + Send + Sync + 'static {
    /// See [`Edge::check_or_wait`].
    fn check_or_wait(&self, request: &CheckRequest<'_>) -> impl Future<Output = Decision> + Send;
    /// See [`Edge::peek`].
    fn peek(&self, request: &CheckRequest<'_>) -> impl Future<Output = Decision> + Send;
    /// See [`Edge::check_counts`].
    fn check_counts(&self) -> CheckCounts;
    /// See [`Edge::status`].
    fn status(&self) -> Status;
}

impl Checks for Edge {
    fn check_or_wait(&self, request: &CheckRequest<'_>) -> impl Future<Output = Decision> + Send {
        Self::check_or_wait(self, request)
    }
    fn peek(&self, request: &CheckRequest<'_>) -> impl Future<Output = Decision> + Send {
        Self::peek(self, request)
    }
    fn check_counts(&self) -> CheckCounts {
        Self::check_counts(self)
    }
    fn status(&self) -> Status {
        Self::status(self)
    }
}

impl Checks for Arc<FakeEdge> {
    fn check_or_wait(&self, request: &CheckRequest<'_>) -> impl Future<Output = Decision> + Send {
        FakeEdge::check_or_wait(self, request)
    }
    fn peek(&self, request: &CheckRequest<'_>) -> impl Future<Output = Decision> + Send {
        FakeEdge::peek(self, request)
    }
    fn check_counts(&self) -> CheckCounts {
        FakeEdge::check_counts(self)
    }
    fn status(&self) -> Status {
        FakeEdge::status(self)
    }
}
