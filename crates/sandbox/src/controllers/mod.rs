//! What kube-controller-manager and kube-scheduler do, as an ordinary client of the cluster.

pub mod addresses;
