//! How messages become bytes on a stream: prost's encoding, with buffers sized for streams of 4 KiB blocks.
//!
//! The stock codec starts at 8 KiB and doubles, so a batch is copied several times before it leaves. Here a batch fits into
//! one buffer, and a message larger than that gets its room at once.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;

/// Bytes of the buffer that a batch is collected in.
const BUFFER_BYTES: usize = 64 << 10;
/// From here on a batch leaves: a message with one block and its header still fits before.
const BATCH_BYTES: usize = BUFFER_BYTES - (8 << 10);

fn buffers() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, BATCH_BYTES)
}

/// The codec of all services.
#[derive(Debug, Clone)]
pub struct StreamCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for StreamCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for StreamCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = StreamEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        StreamEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(buffers())
    }
}

/// Makes room for a whole message before it writes it.
#[derive(Debug)]
pub struct StreamEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for StreamEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.encoded_len());
        item.encode(buf).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}
