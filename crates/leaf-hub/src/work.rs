//! What takes a leaf's task a while, beside which it goes on: opening and comparing the copy, and pages of it for the leaf.

use leaf_bus::hub::{CopyEvents, CopyStream, LeafRequest, RemoteLeaf};
use leaf_bus::stream::StreamError;
use leaf_core::error::chain;
use leaf_core::fleet::copy::{Compared, Extent};
use leaf_core::fleet::{CopiedEvent, CopyPage, CopyReply, Unreadable, fingerprint};
use leaf_core::json::to_json;

/// The end of opening or comparing.
pub(crate) enum Done {
    Opened(Extent, Box<CopyEvents>),
    Compared(Compared),
    Failed(String),
}

/// Opens the copy; makes one that begins where the leaf's stream begins if there is none, or an empty one.
pub(crate) async fn open(stream: CopyStream, remote: RemoteLeaf) -> Done {
    let found = match stream.open().await {
        Ok(found) => found,
        Err(error) => return Done::Failed(format!("can't open the copy: {}", chain(&error))),
    };
    let extent = match found {
        Some(extent) if !extent.is_empty() => extent,
        _ => {
            let first = match remote.extent().await {
                Ok(extent) => extent.first,
                Err(error) => {
                    return Done::Failed(format!("can't read the leaf's stream: {}", chain(&error)));
                }
            };
            match stream.begin(first).await {
                Ok(extent) => extent,
                Err(error) => return Done::Failed(format!("can't make the copy: {}", chain(&error))),
            }
        }
    };
    match stream.publisher(extent.last).await {
        Ok(publisher) => Done::Opened(extent, Box::new(publisher)),
        Err(error) => Done::Failed(format!("can't open the copy: {}", chain(&error))),
    }
}

/// Compares the copy's last event with the leaf's.
pub(crate) async fn compare(stream: CopyStream, remote: RemoteLeaf, extent: Extent) -> Done {
    match compared(&stream, &remote, extent).await {
        Ok(compared) => Done::Compared(compared),
        Err(why) => Done::Failed(format!("can't compare the copy with the leaf's events: {why}")),
    }
}

async fn compared(stream: &CopyStream, remote: &RemoteLeaf, extent: Extent) -> Result<Compared, String> {
    let text = |error: &(dyn std::error::Error + 'static)| chain(error);
    let mut last = extent.last;
    let found = remote.event_from(last).await.map_err(|e| text(&e))?;
    let theirs = match found {
        Some(event) if event.sequence > last => {
            return Ok(Compared::Begins {
                first: event.sequence,
            });
        }
        Some(event) => event,
        None => {
            // The leaf has fewer: its last one is compared.
            let leaf = remote.extent().await.map_err(|e| text(&e))?;
            last = leaf.last;
            if leaf.is_empty() || last < extent.first {
                return Ok(Compared::Ends { last });
            }
            match remote.event_from(last).await.map_err(|e| text(&e))? {
                Some(event) => event,
                None => return Ok(Compared::Ends { last }),
            }
        }
    };
    let ours = stream.read(last).await.map_err(|e| text(&e))?;
    Ok(match ours {
        Some(ours) if fingerprint(&ours) != fingerprint(&theirs) => Compared::Differs { sequence: last },
        _ if last < extent.last => Compared::Ends { last },
        _ => Compared::Same,
    })
}

/// Answers with a page of the copy, or why there is none.
pub(crate) async fn read_copy(
    stream: CopyStream,
    from: u64,
    request: LeafRequest,
) -> Result<(), StreamError> {
    match copy_page(&stream, from, request.reply_room()).await {
        Ok(reply) => request.reply(&reply).await,
        Err(error) => {
            let refused = Unreadable {
                sequence: None,
                unreadable: format!("the copy can't be read at the moment: {}", chain(&error)),
            };
            request.reply(&CopyReply::Unreadable(refused)).await?;
            Err(error)
        }
    }
}

async fn copy_page(stream: &CopyStream, from: u64, room: usize) -> Result<CopyReply, StreamError> {
    let mut page = CopyPage {
        events: Vec::new(),
        last: 0,
    };
    let Some(extent) = stream.open().await? else {
        return Ok(CopyReply::Page(page));
    };
    page.last = extent.last;
    let mut size = to_json(&page).len();
    let mut reader = stream.read_from(from.max(extent.first));
    while let Some(event) = reader.next().await? {
        let sequence = event.sequence;
        let unreadable = match CopiedEvent::try_from(event) {
            Ok(event) => {
                let bytes = to_json(&event).len() + 1;
                if size + bytes <= room {
                    size += bytes;
                    page.events.push(event);
                    continue;
                }
                format!("event {sequence} takes {bytes} bytes in a reply, and a message has room for {room}")
            }
            Err(error) => error.to_string(),
        };
        if page.events.is_empty() {
            return Ok(CopyReply::Unreadable(Unreadable {
                sequence: Some(sequence),
                unreadable,
            }));
        }
        break;
    }
    Ok(CopyReply::Page(page))
}
