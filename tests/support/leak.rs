//! Finds what looks like a secret access key in text, in any of the forms in which one may slip out.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    thread::JoinHandle,
};

/// How much of a secret must follow its prefix: text about secrets may name the prefix.
const ENOUGH: usize = 20;

/// `aks_` in base64 with no, one or two bytes before it: the characters that these bytes alone decide, and what stands
/// for the bytes before.
const BASE64: [(&str, &str); 3] = [("YWtzX", ""), ("Frc1", "AG"), ("ha3Nf", "AAB")];

/// `aks_` in the `Debug` text of bytes.
const DEBUG: [&str; 2] = ["97, 107, 115, 95", "97,107,115,95"];

/// Where the first secret begins: plain, in base64 at any alignment, in hex, or as `Debug` of bytes.
pub fn secret_in(text: &[u8]) -> Option<usize> {
    (0..text.len()).find(|at| {
        let rest = &text[*at..];
        match rest[0] {
            b'a' => is_secret(rest),
            b'Y' | b'F' | b'h' => {
                let found = BASE64.iter().find(|(needle, _)| rest.starts_with(needle.as_bytes()));
                found.is_some_and(|(_, before)| {
                    let bytes = decode_base64(&[before.as_bytes(), &rest[..rest.len().min(40)]].concat());
                    bytes.windows(4 + ENOUGH).take(3).any(is_secret)
                })
            }
            b'6' => is_secret(&decode_hex(&rest[..rest.len().min(2 * (4 + ENOUGH))])),
            b'9' => DEBUG.iter().any(|needle| rest.starts_with(needle.as_bytes())),
            _ => false,
        }
    })
}

/// Copies a log from a pipe into a file. A secret in it ends the whole test program.
pub fn copy_watchfully(log: impl Read + Send + 'static, file: &Path) -> JoinHandle<()> {
    let mut copy = File::create(file).unwrap();
    let file: PathBuf = file.to_owned();
    std::thread::spawn(move || {
        let mut log = BufReader::new(log);
        let mut line = Vec::new();
        while log.read_until(b'\n', &mut line).unwrap_or(0) > 0 {
            if let Some(at) = secret_in(&line) {
                let start = String::from_utf8_lossy(&line[..at]);
                let mut stderr = std::io::stderr().lock();
                let _ = writeln!(stderr, "A SECRET IS IN THE LOG OF THE OPERATOR, {}, after: {start}", file.display());
                std::process::exit(101);
            }
            copy.write_all(&line).unwrap();
            line.clear();
        }
    })
}

fn is_secret(text: &[u8]) -> bool {
    text.strip_prefix(b"aks_")
        .is_some_and(|rest| rest.iter().take(ENOUGH).filter(|byte| byte.is_ascii_alphanumeric()).count() == ENOUGH)
}

/// Up to the first character that is none of it.
fn decode_base64(text: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let digits: Vec<usize> = text.iter().map_while(|byte| DIGITS.iter().position(|digit| digit == byte)).collect();
    let quads = digits.chunks_exact(4);
    let numbers =
        quads.map(|quad| quad.iter().fold(0_u32, |number, digit| number << 6 | u32::try_from(*digit).unwrap()));
    numbers.flat_map(|number| number.to_be_bytes().into_iter().skip(1)).collect()
}

fn decode_hex(text: &[u8]) -> Vec<u8> {
    let digits = text.iter().map_while(|byte| char::from(*byte).to_digit(16)).collect::<Vec<_>>();
    digits.chunks_exact(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap()).collect()
}
