//! The pair itself: how an id and a secret are made, read and compared.
//!
//! A secret has no `Debug`, no `Display` and no `Clone`, and is wiped when dropped. This module knows nothing of
//! Kubernetes.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Fresh random bytes from the operating system: all the randomness that one secret needs.
pub type Entropy = Zeroizing<[u8; 32]>;

/// Public half of a pair: `AKO` and 17 characters of `A-Z2-7`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

/// Secret half of a pair: `aks_`, 43 base62 characters that hold 256 random bits, and 6 of CRC32 over all before.
pub struct SecretText(Zeroizing<String>);

/// Both halves.
pub struct Pair {
    /// Public half.
    pub id: KeyId,
    /// Secret half.
    pub secret: SecretText,
}

/// Text that is not a [`KeyId`] or a [`SecretText`]; it does not repeat the text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not `AKO` and 17 characters of `A-Z2-7`.
    #[error("not an access key id: it has 20 characters and starts with {ID_PREFIX}")]
    Id,
    /// Not of the form, or its checksum is wrong.
    #[error("not a secret access key: it is cut short or mistyped")]
    Secret,
}

const ID_PREFIX: &str = "AKO";
const ID_LENGTH: usize = 20;
const SECRET_PREFIX: &str = "aks_";
const RANDOM_DIGITS: usize = 43;
const CHECK_DIGITS: usize = 6;

impl KeyId {
    /// The id of the pair that a revision of an AccessKey gets, decided on from one version of that object.
    ///
    /// Derived, not drawn, and from what never comes back: the record of the pair holds only for this very
    /// `resourceVersion`, so no id is ever recorded twice, even if somebody has cleared the status, the Secret and the
    /// ledger, which together tell the revisions that were used.
    #[must_use]
    pub fn derive(uid: &str, revision: i64, resource_version: &str) -> Self {
        let parts = [uid.as_bytes(), &revision.to_be_bytes(), resource_version.as_bytes()];
        let digest =
            parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update([0]).chain_update(part)).finalize();
        Self(format!("{ID_PREFIX}{}", base32(&digest, ID_LENGTH - ID_PREFIX.len())))
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Stable id of a Subuser: `su-` and 16 characters of `a-z2-7`, derived from its uid.
#[must_use]
pub fn principal_id(uid: &str) -> String {
    format!("su-{}", base32(&Sha256::digest(uid), 16).to_lowercase())
}

/// `sha256:<hex>` of a secret.
#[must_use]
pub fn fingerprint(secret: &[u8]) -> String {
    Sha256::digest(secret).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

impl SecretText {
    /// Writes 256 random bits down as a secret.
    #[must_use]
    pub fn new(entropy: &Entropy) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(SECRET_PREFIX.len() + RANDOM_DIGITS + CHECK_DIGITS));
        text.push_str(SECRET_PREFIX);
        push_base62(&mut text, entropy.as_slice(), RANDOM_DIGITS);
        let check = crc32(text.as_bytes());
        push_base62(&mut text, &check.to_be_bytes(), CHECK_DIGITS);
        Self(text)
    }

    /// The bytes, for who must write or hash them.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let rest = text.strip_prefix(ID_PREFIX).ok_or(Malformed::Id)?;
        let well_formed = rest.len() == ID_LENGTH - ID_PREFIX.len() && rest.bytes().all(|byte| BASE32.contains(&byte));
        if well_formed { Ok(Self(text.to_owned())) } else { Err(Malformed::Id) }
    }
}

impl FromStr for SecretText {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let well_formed = text.len() == SECRET_PREFIX.len() + RANDOM_DIGITS + CHECK_DIGITS
            && text.is_ascii()
            && text.starts_with(SECRET_PREFIX);
        let (body, check) = text.split_at_checked(SECRET_PREFIX.len() + RANDOM_DIGITS).ok_or(Malformed::Secret)?;
        let mut expected = String::new();
        push_base62(&mut expected, &crc32(body.as_bytes()).to_be_bytes(), CHECK_DIGITS);
        if well_formed && check == expected {
            Ok(Self(Zeroizing::new(text.to_owned())))
        } else {
            Err(Malformed::Secret)
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// RFC 4648.
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The first `length` base32 characters of `bytes`, five bits each.
fn base32(bytes: &[u8], length: usize) -> String {
    let bit = |index: usize| bytes.get(index / 8).is_some_and(|byte| byte & (0x80 >> (index % 8)) != 0);
    let digit = |place: usize| (0..5).fold(0, |digit, offset| digit << 1 | usize::from(bit(place * 5 + offset)));
    (0..length).filter_map(|place| BASE32.get(digit(place))).map(|byte| char::from(*byte)).collect()
}

/// Appends the big-endian number in `bytes` as exactly `digits` base62 digits; it must fit.
fn push_base62(text: &mut String, bytes: &[u8], digits: usize) {
    let mut number = Zeroizing::new(bytes.to_vec());
    let mut reversed = Zeroizing::new(Vec::with_capacity(digits));
    for _ in 0..digits {
        let remainder = number.iter_mut().fold(0_u16, |carry, byte| {
            let value = carry << 8 | u16::from(*byte);
            *byte = u8::try_from(value / 62).unwrap_or(u8::MAX);
            value % 62
        });
        reversed.push(BASE62.get(usize::from(remainder)).copied().unwrap_or_default());
    }
    debug_assert!(number.iter().all(|byte| *byte == 0), "the number needs more than {digits} digits");
    text.extend(reversed.iter().rev().map(|byte| char::from(*byte)));
}

/// CRC-32 as in IEEE 802.3 and zip, bit by bit: it runs once for each secret.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn secret(byte: u8) -> SecretText {
        SecretText::new(&Zeroizing::new([byte; 32]))
    }

    #[test]
    fn crc32_is_the_one_of_everybody() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn base32_is_rfc_4648() {
        assert_eq!(base32(b"foobar", 10), "MZXW6YTBOI");
    }

    #[test]
    fn fingerprint_is_plain_sha256() {
        assert_eq!(fingerprint(b"abc"), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn ids_differ_by_all_they_come_from_and_read_back() {
        let versions =
            |revision| ["a", "b", "a1"].map(|uid| ["7", "71"].map(|version| KeyId::derive(uid, revision, version)));
        let ids: BTreeSet<KeyId> = (1..50).flat_map(versions).flatten().collect();
        assert_eq!(ids.len(), 49 * 3 * 2);
        assert!(ids.iter().all(|id| id.as_str().parse::<KeyId>().as_ref() == Ok(id)));
        for text in
            ["", "AKO", "AKOABCDEFGHIJKLMNOP", "AKOABCDEFGHIJKLMNOPQ1", "AKOabcdefghijklmnopq", "AKIAIOSFODNN7EXAMPLE"]
        {
            assert!(text.parse::<KeyId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_keeps_all_256_bits() {
        assert!(secret(0).expose().starts_with(&format!("aks_{}", "0".repeat(43))));
        let distinct: BTreeSet<String> = (0..=255).map(|byte| secret(byte).expose().to_owned()).collect();
        assert_eq!(distinct.len(), 256);
        assert!(distinct.iter().all(|text| text.len() == 53));
        let one_bit = |bit: usize| {
            let mut bytes = [0xA5; 32];
            bytes[bit / 8] ^= 1 << (bit % 8);
            SecretText::new(&Zeroizing::new(bytes)).expose().to_owned()
        };
        assert_eq!((0..256).map(one_bit).collect::<BTreeSet<_>>().len(), 256);
    }

    #[test]
    fn a_mistyped_secret_is_found_offline() {
        let text = secret(7).expose().to_owned();
        assert!(text.parse::<SecretText>().is_ok());
        for place in 0..text.len() {
            let mut typo = text.clone().into_bytes();
            typo[place] = if typo[place] == b'x' { b'y' } else { b'x' };
            assert!(String::from_utf8(typo).unwrap().parse::<SecretText>().is_err(), "at {place}");
        }
        for cut in 0..text.len() {
            assert!(text[..cut].parse::<SecretText>().is_err());
        }
        assert!(format!("{text}0").parse::<SecretText>().is_err());
        assert!("aks_ä".repeat(11).parse::<SecretText>().is_err());
    }
}
