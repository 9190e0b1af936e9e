//! What must be installed in a cluster before the operator can work: CRDs and admission policies.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps,
};
use kube::CustomResourceExt;

use super::{AccessKey, Subuser};

/// The admission policies, as text: CEL reads best where it is not generated.
const POLICIES: &str = include_str!("policies.yaml");

/// The CRD of Subusers.
#[must_use]
pub fn subuser_crd() -> CustomResourceDefinition {
    with_unobserved_status(Subuser::crd())
}

/// The CRD of AccessKeys.
#[must_use]
pub fn access_key_crd() -> CustomResourceDefinition {
    with_unobserved_status(AccessKey::crd())
}

/// CRDs and admission policies, each under the name of its file in `crds/`, as YAML ready for `kubectl apply -f`.
///
/// # Errors
/// When a CRD cannot be written as YAML.
pub fn manifests() -> Result<Vec<(&'static str, String)>, serde_yaml::Error> {
    Ok(vec![
        ("accesskey.dev_subusers.yaml", serde_yaml::to_string(&subuser_crd())?),
        ("accesskey.dev_accesskeys.yaml", serde_yaml::to_string(&access_key_crd())?),
        ("admission-policies.yaml", POLICIES.to_owned()),
    ])
}

/// A fresh object must not look current to tools that compare `observedGeneration`, so its status starts at -1.
fn with_unobserved_status(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let schemas = crd.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut());
    for root in schemas.filter_map(|schema| schema.open_api_v3_schema.as_mut()) {
        if let Some(status) = root.properties.as_mut().and_then(|properties| properties.get_mut("status")) {
            *status = JSONSchemaProps {
                default: Some(JSON(serde_json::json!({ "observedGeneration": -1 }))),
                nullable: None,
                ..std::mem::take(status)
            };
        }
    }
    crd
}
