//! Who may come in, and how each side knows the other: certificates, static tokens and kubeconfigs, fresh for every run.

use std::net::{IpAddr, Ipv4Addr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};

use crate::error::Error;
use crate::run_folder::{RunFolder, random_hex};

pub(crate) const ADMIN: &str = "admin";
pub(crate) const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";

pub(crate) const AUTHORITY: &str = "ca.crt";
pub(crate) const SERVING: &str = "apiserver.crt";
pub(crate) const SERVING_KEY: &str = "apiserver.key";
pub(crate) const SERVICE_ACCOUNT_KEY: &str = "service-account.key";
pub(crate) const SERVICE_ACCOUNT_PUBLIC_KEY: &str = "service-account.pub";
pub(crate) const TOKENS: &str = "tokens.csv";

/// Writes all of it into the run's folder; `users` are those beside the admin and the controller manager.
pub(crate) fn write(run: &RunFolder, server: &str, users: &[&str]) -> Result<(), Error> {
    let authority = write_certificates(run)?;
    let masters = [ADMIN, CONTROLLER_MANAGER].map(|user| (user, ",system:masters"));
    let mut tokens = String::new();
    for (user, groups) in masters.into_iter().chain(users.iter().map(|user| (*user, ""))) {
        let token = random_hex::<16>().map_err(Error::io("read random bytes"))?;
        tokens.extend([token.as_str(), ",", user, ",", user, groups, "\n"]);
        run.write(&kubeconfig_name(user), &kubeconfig(server, &authority, user, &token))?;
    }
    run.write(TOKENS, &tokens).map(drop)
}

/// Where the user's kubeconfig lies in the run's folder.
pub(crate) fn kubeconfig_name(user: &str) -> String {
    format!("{}.kubeconfig", user.replace(':', "-"))
}

fn kubeconfig(server: &str, authority: &str, user: &str, token: &str) -> String {
    let authority = STANDARD.encode(authority);
    format!(
        "apiVersion: v1
kind: Config
current-context: controlplane
contexts:
  - name: controlplane
    context: {{cluster: controlplane, user: '{user}', namespace: default}}
clusters:
  - name: controlplane
    cluster:
      server: {server}
      certificate-authority-data: {authority}
users:
  - name: '{user}'
    user: {{token: '{token}'}}
"
    )
}

/// Returns the authority's certificate.
fn write_certificates(run: &RunFolder) -> Result<String, Error> {
    let (authority, serving, serving_key) = certificates().map_err(Error::Certificates)?;
    run.write(AUTHORITY, &authority)?;
    run.write(SERVING, &serving)?;
    run.write(SERVING_KEY, &serving_key)?;
    let tokens = KeyPair::generate().map_err(Error::Certificates)?;
    run.write(SERVICE_ACCOUNT_KEY, &tokens.serialize_pem())?;
    run.write(SERVICE_ACCOUNT_PUBLIC_KEY, &tokens.public_key_pem())?;
    Ok(authority)
}

/// The authority's certificate, the API server's, and the key of the latter, in PEM.
fn certificates() -> Result<(String, String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "controlplane authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    let mut params = CertificateParams::new(["localhost".to_owned(), "kubernetes.default.svc".to_owned()])?;
    params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let serving = params.signed_by(&key, &authority)?;
    Ok((authority.pem(), serving.pem(), key.serialize_pem()))
}
