//! The command line: what each program is told.

use std::{net::SocketAddr, path::PathBuf};

use clap::{ArgAction, Args, Parser, Subcommand};

/// Access keys as Kubernetes objects: issued, limited, expiring, disabled in milliseconds, deleted only when it is safe.
#[derive(Parser, Debug)]
#[command(name = "accesskey-operator", version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Runs the controllers.
    Run(RunSettings),
    /// Prints CRDs and admission policies as YAML, ready for `kubectl apply -f -`.
    Crds,
}

/// Settings of the controllers.
#[derive(Args, Clone, Debug)]
pub struct RunSettings {
    /// Look only at this namespace; may be given several times. Default: all.
    #[arg(long = "namespace", value_name = "NAMESPACE")]
    pub namespaces: Vec<String>,

    /// Let only one replica work at a time, by a Lease. The limits hold without it too; it saves work.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub leader_election: bool,

    /// Namespace of the Lease. Default: the namespace of the kubeconfig, in a cluster the Pod's own.
    #[arg(long, value_name = "NAMESPACE")]
    pub lease_namespace: Option<String>,

    /// Name of this replica in the Lease and in Events; unique among the replicas. Default: drawn at random.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: Option<String>,

    /// Address of /livez, /readyz and /metrics.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub admin_address: SocketAddr,

    /// The kubeconfig to use. Default: KUBECONFIG, ~/.kube/config, or in a cluster the Pod's ServiceAccount.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The context of the kubeconfig to use. Default: its current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

impl Default for RunSettings {
    fn default() -> Self {
        Self {
            namespaces: vec![],
            leader_election: true,
            lease_namespace: None,
            identity: None,
            admin_address: SocketAddr::from(([0, 0, 0, 0], 8080)),
            kubeconfig: None,
            context: None,
        }
    }
}
