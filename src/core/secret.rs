//! The Secret that holds a pair: what is in it, whose it is, and whether it is as it should be.
//!
//! A Secret that an AccessKey does not control, by uid, is never touched: ownership is asked here, and only here.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Resource, ResourceExt, core::NamespaceResourceScope};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::credential::{Entropy, KeyId, Pair, SecretText, fingerprint};
use crate::api::{
    AccessKey, DataKeys, Format, GROUP, OPERATOR, REVISION, SECRET_TYPE, SecretTemplate, TEMPLATED, lean_metadata,
};

/// A Secret of type `accesskey.dev/access-key`. Its data is shared, never copied, not shown, and wiped when dropped.
#[derive(Clone, PartialEq)]
pub struct PairSecret {
    /// Its metadata.
    pub metadata: ObjectMeta,
    data: Arc<Data>,
}

type Data = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// What is known of the Secret of an AccessKey.
#[derive(Clone, Debug, PartialEq)]
pub enum SecretSeen {
    /// There is none.
    Absent,
    /// The AccessKey controls it.
    Ours(PairSecret),
    /// Somebody else's has the name.
    Foreign,
    /// The API server refused to write it, in these words.
    Refused(String),
}

impl PairSecret {
    /// The Secret of `key` as it should be with `pair`, on top of `before` where there is one: what others have put on
    /// it stays.
    #[must_use]
    pub fn lay_out(key: &AccessKey, pair: &Pair, revision: i64, before: Option<&Self>) -> Self {
        let plain = SecretTemplate::default();
        let template = key.spec.secret.as_ref().unwrap_or(&plain);
        let mut metadata = before.map(|secret| secret.metadata.clone()).unwrap_or_default();
        metadata.name = Some(key.secret_name());
        metadata.namespace = key.namespace();
        if before.is_none() {
            metadata.owner_references = Some(vec![owner_reference(key)]);
        }
        let templated = Templated::of(&metadata);
        let labels = metadata.labels.get_or_insert_default();
        labels.retain(|name, _| !templated.labels.contains(name));
        labels.extend(template.labels.clone());
        labels.insert("app.kubernetes.io/managed-by".into(), OPERATOR.into());
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.retain(|name, _| !templated.annotations.contains(name) && name != TEMPLATED);
        annotations.extend(template.annotations.clone());
        annotations.insert(REVISION.into(), revision.to_string());
        annotations.extend(Templated::by(template).annotation());
        Self { metadata, data: Arc::new(render(template, pair)) }
    }

    /// The pair in it, by the names that `key` gives the two halves; `None` where there is none.
    #[must_use]
    pub fn pair(&self, key: &AccessKey) -> Option<Pair> {
        let names = key.spec.secret.as_ref().and_then(|secret| secret.keys.clone()).unwrap_or_default();
        self.pair_under(&names).or_else(|| self.templated_pair())
    }

    /// Whether it holds exactly this id with a secret of this fingerprint.
    #[must_use]
    pub fn holds(&self, key: &AccessKey, id: &str, print: &str) -> bool {
        self.pair(key)
            .is_some_and(|pair| pair.id.as_str() == id && fingerprint(pair.secret.expose().as_bytes()) == print)
    }

    /// Whether `key` controls it.
    #[must_use]
    pub fn is_controlled_by(&self, uid: &str) -> bool {
        controller(&self.metadata).is_some_and(|owner| owner.uid == uid)
    }

    /// The revision that it says it holds.
    #[must_use]
    pub fn revision(&self) -> Option<i64> {
        self.annotations().get(REVISION).and_then(|revision| revision.parse().ok())
    }

    /// The pair by the names that the Secret was laid out with last: those in the spec may have just been changed.
    fn templated_pair(&self) -> Option<Pair> {
        self.pair_under(&Templated::of(&self.metadata).keys.unwrap_or_default())
    }

    fn pair_under(&self, names: &DataKeys) -> Option<Pair> {
        let text = |name: &str| self.data.get(name).and_then(|bytes| std::str::from_utf8(bytes).ok());
        Some(Pair { id: text(&names.id)?.parse().ok()?, secret: text(&names.secret)?.parse().ok()? })
    }
}

/// Which metadata, and which names of the two halves, came from the AccessKey's template: kept as an annotation.
#[derive(Default, Serialize, Deserialize)]
struct Templated {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    labels: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    annotations: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys: Option<DataKeys>,
}

impl Templated {
    fn of(metadata: &ObjectMeta) -> Self {
        let text = metadata.annotations.as_ref().and_then(|annotations| annotations.get(TEMPLATED));
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    fn by(template: &SecretTemplate) -> Self {
        Self {
            labels: template.labels.keys().cloned().collect(),
            annotations: template.annotations.keys().cloned().collect(),
            keys: template.keys.clone(),
        }
    }

    /// Nothing for a plain template: most Secrets then carry no such annotation.
    fn annotation(&self) -> Option<(String, String)> {
        let plain = self.labels.is_empty() && self.annotations.is_empty() && self.keys.is_none();
        serde_json::to_string(self).ok().filter(|_| !plain).map(|text| (TEMPLATED.to_owned(), text))
    }
}

/// Every data key of the Secret, for a template and a pair.
fn render(template: &SecretTemplate, Pair { id, secret }: &Pair) -> Data {
    let names = template.keys.clone().unwrap_or_default();
    let secret = secret.expose();
    let mut data = vec![
        (names.id.as_str(), id.to_string()),
        (names.secret.as_str(), secret.to_owned()),
        ("type", "access-key".to_owned()),
        ("provider", GROUP.to_owned()),
    ];
    for format in &template.formats {
        data.extend(rendition(*format, id, secret));
    }
    data.into_iter().map(|(name, text)| (name.to_owned(), Zeroizing::new(text.into_bytes()))).collect()
}

fn rendition(format: Format, id: &KeyId, secret: &str) -> Vec<(&'static str, String)> {
    let both = |id_name, secret_name| vec![(id_name, id.to_string()), (secret_name, secret.to_owned())];
    match format {
        Format::Aws => {
            let file = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
            let mut data = both("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
            data.push(("credentials", file));
            data
        }
        Format::Tencent => both("TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY"),
        Format::Env => both("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"),
        // The columns of the file that cloud consoles offer; neither half holds a comma or a quote.
        Format::Csv => vec![("accesskey.csv", format!("Access key ID,Secret access key\n{id},{secret}\n"))],
        Format::Json => {
            let file = serde_json::json!({ "accessKeyId": id.as_str(), "secretAccessKey": secret });
            vec![("accesskey.json", file.to_string())]
        }
        Format::Token => vec![("token", format!("{id}.{secret}"))],
    }
}

fn owner_reference(key: &AccessKey) -> OwnerReference {
    OwnerReference {
        api_version: AccessKey::api_version(&()).into_owned(),
        kind: AccessKey::kind(&()).into_owned(),
        name: key.name_any(),
        uid: key.uid().unwrap_or_default(),
        controller: Some(true),
        // The finalizer already keeps the AccessKey; blocking would need a permission more.
        block_owner_deletion: None,
    }
}

/// The controller among the owners of an object.
#[must_use]
pub fn controller(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

impl fmt::Debug for PairSecret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Secret {} {:?}", self.name_any(), self.data.keys().collect::<Vec<_>>())
    }
}

/// On the wire.
#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    #[serde(rename = "apiVersion", default)]
    api_version: Cow<'a, str>,
    #[serde(default)]
    kind: Cow<'a, str>,
    #[serde(deserialize_with = "lean_metadata")]
    metadata: ObjectMeta,
    #[serde(rename = "type", default)]
    type_: Cow<'a, str>,
    #[serde(default)]
    data: Option<BTreeMap<String, ByteString>>,
}

impl<'de> Deserialize<'de> for PairSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Wire { metadata, data, .. } = Wire::deserialize(deserializer)?;
        let data = data.into_iter().flatten().map(|(name, bytes)| (name, Zeroizing::new(bytes.0))).collect();
        Ok(Self { metadata, data: Arc::new(data) })
    }
}

impl Serialize for PairSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = |(name, bytes): (&String, &Zeroizing<Vec<u8>>)| (name.clone(), ByteString(bytes.to_vec()));
        let wire = Wire {
            api_version: Secret::api_version(&()),
            kind: Secret::kind(&()),
            metadata: self.metadata.clone(),
            type_: SECRET_TYPE.into(),
            data: Some(self.data.iter().map(bytes).collect()),
        };
        wire.serialize(serializer)
    }
}

impl Resource for PairSecret {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Secret::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Secret::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Secret::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Secret::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A new pair for a revision of `key`, to be recorded in this very version of it.
#[must_use]
pub fn new_pair(key: &AccessKey, revision: i64, entropy: &Entropy) -> Pair {
    let (uid, version) = (key.uid().unwrap_or_default(), key.resource_version().unwrap_or_default());
    Pair { id: KeyId::derive(&uid, revision, &version), secret: SecretText::new(entropy) }
}
