//! What takes a leaf's task a while, beside which it goes on: opening and comparing the copy, looking at it, and
//! pages of it for the leaf.

use std::time::Duration;

use leaf_bus::hub::{CopyStream, LeafRequest, RemoteLeaf};
use leaf_bus::stream::StreamError;
use leaf_core::error::chain;
use leaf_core::fleet::copy::{Compared, Extent};
use leaf_core::fleet::{CopiedEvent, CopyPage, CopyReply, Unreadable, fingerprint};
use leaf_core::id::InstanceId;
use leaf_core::json::to_json;

/// The largest sequence number that a copy may begin with.
const LAST_NUMBER: u64 = 1 << 53;
/// How long a page of the copy may take to be read.
const PAGE_WITHIN: Duration = Duration::from_secs(4);

/// The end of what was under way.
pub(crate) enum Done {
    Opened(Extent),
    Compared(Compared),
    Admitted,
    Refused,
    Looked(Option<Extent>),
    Failed(String),
}

/// Opens the copy for the holder of the name; makes one that begins where the leaf's stream begins if there is none, or an empty
/// one.
pub(crate) async fn open(stream: CopyStream, remote: RemoteLeaf, holder: InstanceId) -> Done {
    let found = match stream.open(holder).await {
        Ok(found) => found,
        Err(error) => return Done::Failed(format!("can't open the copy: {}", chain(&error))),
    };
    if let Some(extent) = found.filter(|extent| !extent.is_empty()) {
        return Done::Opened(extent);
    }
    let first = match remote.extent().await {
        // A leaf may say what it likes, and a stream has no such numbers.
        Ok(extent) if extent.first > LAST_NUMBER => {
            return Done::Failed(format!(
                "the leaf says that its stream begins with {}",
                extent.first
            ));
        }
        Ok(extent) => extent.first,
        Err(error) => return Done::Failed(format!("can't read the leaf's stream: {}", chain(&error))),
    };
    match stream.begin(first).await {
        Ok(extent) => Done::Opened(extent),
        Err(error) => Done::Failed(format!("can't make the copy: {}", chain(&error))),
    }
}

/// Lets the copy take the events of this instance, if it still ends with the event up to which it was compared.
pub(crate) async fn admit(stream: CopyStream, holder: InstanceId, last: u64) -> Done {
    match stream.admit(holder, last).await {
        Ok(()) => Done::Admitted,
        Err(error) => Done::Failed(format!(
            "can't open the copy to the leaf's events: {}",
            chain(&error)
        )),
    }
}

/// Lets the copy take no events.
pub(crate) async fn refuse(stream: CopyStream) -> Done {
    match stream.close().await {
        Ok(()) => Done::Refused,
        Err(error) => Done::Failed(format!(
            "can't close the copy to the leaf's events: {}",
            chain(&error)
        )),
    }
}

/// Reads where the copy ends.
pub(crate) async fn look(stream: CopyStream) -> Done {
    match stream.extent().await {
        Ok(extent) => Done::Looked(extent),
        Err(error) => Done::Failed(format!("can't read where the copy ends: {}", chain(&error))),
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
            // The leaf has dropped it. What comes next must be of the same history.
            let ours = stream.read(last).await.map_err(|e| text(&e))?;
            let histories = [ours.and_then(|ours| ours.epoch()), event.epoch()];
            return Ok(match histories {
                [Some(ours), Some(theirs)] if ours != theirs => Compared::Differs { sequence: last },
                _ => Compared::Begins {
                    first: event.sequence,
                },
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
    let page = copy_page(&stream, from, request.reply_room());
    let page = tokio::time::timeout(PAGE_WITHIN, page).await;
    let late = |_| StreamError::Unanswered {
        what: "the request for a page of the copy".to_owned(),
    };
    match page.map_err(late).flatten() {
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
    let Some(extent) = stream.extent().await? else {
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
