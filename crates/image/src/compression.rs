//! Reading layers whatever they are compressed with (OCI image specification, `layer.md`).

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// First bytes of gzip (RFC 1952, section 2.3.1) and of zstd's frames (RFC 8878, section 3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// Frames of zstd that hold no data have a number of these sixteen.
const ZSTD_SKIPPED: u32 = 0x184d_2a50;

/// What `blob` holds: decompressed if it is gzip or zstd, else as it is. Which it is its first
/// bytes tell; a media type may be wrong.
///
/// # Errors
/// What reading says.
pub fn decompressed(blob: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut blob = BufReader::with_capacity(64 << 10, blob);
    let mut head = Vec::new();
    blob.by_ref().take(4).read_to_end(&mut head)?;
    let is_gzip = head.starts_with(&GZIP);
    let is_zstd = head.starts_with(&ZSTD);
    let whole = BufReader::new(io::Cursor::new(head).chain(blob));
    Ok(match (is_gzip, is_zstd) {
        (true, _) => Box::new(MultiGzDecoder::new(whole)),
        (_, true) => Box::new(Zstd::Between(Some(whole))),
        _ => Box::new(whole),
    })
}

/// A frame, whose first four bytes were read to look at them.
type Frame<R> = StreamingDecoder<io::Chain<io::Cursor<[u8; 4]>, R>, FrameDecoder>;

/// All frames of a zstd file, one after the other.
enum Zstd<R: BufRead> {
    Between(Option<R>),
    Within(Box<Frame<R>>),
}

impl<R: BufRead> Zstd<R> {
    /// Goes on to the next frame that holds data; false at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        let Self::Between(source) = self else {
            return Ok(true);
        };
        let Some(mut source) = source.take() else {
            return Ok(false);
        };
        while !source.fill_buf()?.is_empty() {
            let mut magic = [0; 4];
            source.read_exact(&mut magic)?;
            if u32::from_le_bytes(magic) & !0xf == ZSTD_SKIPPED {
                let mut length = [0; 4];
                source.read_exact(&mut length)?;
                let length = u32::from_le_bytes(length).into();
                io::copy(&mut source.by_ref().take(length), &mut io::sink())?;
                continue;
            }
            let decoder = StreamingDecoder::new(io::Cursor::new(magic).chain(source))
                .map_err(io::Error::other)?;
            *self = Self::Within(Box::new(decoder));
            return Ok(true);
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.next_frame()? {
            let Self::Within(decoder) = self else {
                break;
            };
            match decoder.read(buffer)? {
                0 if !buffer.is_empty() => {
                    let Self::Within(decoder) = std::mem::replace(self, Self::Between(None)) else {
                        break;
                    };
                    let (_, source) = decoder.into_inner().into_inner();
                    *self = Self::Between(Some(source));
                }
                count => return Ok(count),
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(bytes: Vec<u8>) -> io::Result<String> {
        let mut text = String::new();
        decompressed(io::Cursor::new(bytes))?.read_to_string(&mut text)?;
        Ok(text)
    }

    fn zstd(text: &str) -> Vec<u8> {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress_to_vec(text.as_bytes(), level)
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text.as_bytes()).expect("memory");
        gzip.finish().expect("memory")
    }

    #[test]
    fn plain_gzip_and_zstd_are_told_apart() {
        let text = "some text, long enough to be compressed ".repeat(10_000);
        for (case, bytes) in [
            ("plain", text.clone().into_bytes()),
            ("gzip", gzip(&text)),
            ("zstd", zstd(&text)),
        ] {
            assert!(read(bytes).expect(case) == text, "{case}");
        }
        assert_eq!(read(Vec::new()).expect("nothing"), "");
        assert_eq!(read(b"x".to_vec()).expect("one byte"), "x");
    }

    #[test]
    fn parts_follow_one_another() {
        let parts = [gzip("one "), gzip("two")].concat();
        assert_eq!(read(parts).expect("gzip"), "one two");
        let skipped = [&0x184d_2a53_u32.to_le_bytes()[..], &[3, 0, 0, 0], b"toc"].concat();
        let parts = [zstd("one "), skipped, zstd("two")].concat();
        assert_eq!(read(parts).expect("zstd"), "one two");
    }

    #[test]
    fn what_is_cut_is_an_error() {
        let text = "text ".repeat(10_000);
        for mut bytes in [gzip(&text), zstd(&text)] {
            bytes.truncate(bytes.len() - 5);
            read(bytes).expect_err("cut");
        }
    }
}
