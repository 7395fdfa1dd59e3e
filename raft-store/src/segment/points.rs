//! Where to start looking for an entry: one point per 256 KiB of frames, in memory.
//!
//! Appends add points as they become durable. For a segment found at start-up the table is completed
//! by walking its frame headers when somebody first reads below what is known.
//!
//! A *region* is what lies between one point and the next. It is verified as a whole when it is
//! first read, so that later reads of message bytes inside it need no walk.

use ledgermq_common::{LogIndex, PhysicalOffset};

/// Bytes of frames between two points; at 32 bytes a point, 128 MiB of memory for a TiB of log.
pub const POINT_INTERVAL_BYTES: u64 = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    pub index: LogIndex,
    /// Where the frame of that entry starts.
    pub at: PhysicalOffset,
    /// Every frame from here to the next point was checked against its checksum.
    pub verified: bool,
}

#[derive(Debug)]
pub struct PointTable {
    points: Vec<Point>,
    /// Whether the table reaches back to the first frame of the segment.
    complete: bool,
}

impl PointTable {
    /// For a segment that has no frame yet.
    pub fn complete() -> Self {
        Self { points: Vec::new(), complete: true }
    }

    pub fn unscanned() -> Self {
        Self { points: Vec::new(), complete: false }
    }

    pub fn is_complete(&self) -> bool {
        self.complete
    }

    pub fn into_points(self) -> Vec<Point> {
        self.points
    }

    pub fn first(&self) -> Option<Point> {
        self.points.first().copied()
    }

    /// Takes note of a durable frame; frames come in order.
    pub fn add(&mut self, index: LogIndex, at: PhysicalOffset) {
        let due = self.points.last().is_none_or(|last| at.get() >= last.at.get() + POINT_INTERVAL_BYTES);
        if due {
            self.points.push(Point { index, at, verified: false });
        }
    }

    /// Puts the points of the part of the segment that was not known in front.
    pub fn complete_with(&mut self, mut head: Vec<Point>) {
        head.append(&mut self.points);
        self.points = head;
        self.complete = true;
    }

    /// Forgets everything from `at` on.
    pub fn cut(&mut self, at: PhysicalOffset) {
        self.points.retain(|point| point.at < at);
        if let Some(last) = self.points.last_mut() {
            last.verified = false;
        }
    }

    /// The last point at or before the entry, and the one after it.
    pub fn around_index(&self, index: LogIndex) -> Option<(Point, Option<Point>)> {
        self.around(self.points.partition_point(|point| point.index <= index))
    }

    /// The last point at or before the offset, and the one after it.
    pub fn around_offset(&self, at: PhysicalOffset) -> Option<(Point, Option<Point>)> {
        self.around(self.points.partition_point(|point| point.at <= at))
    }

    pub fn set_verified(&mut self, at: PhysicalOffset) {
        if let Ok(found) = self.points.binary_search_by_key(&at, |point| point.at)
            && let Some(point) = self.points.get_mut(found)
        {
            point.verified = true;
        }
    }

    fn around(&self, after: usize) -> Option<(Point, Option<Point>)> {
        let point = self.points.get(after.checked_sub(1)?)?;
        Some((*point, self.points.get(after).copied()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_found_by_entry_and_by_offset_and_cut() {
        let mut table = PointTable::complete();
        for entry in 0..1000u64 {
            table.add(LogIndex(entry), PhysicalOffset(4096 + entry * 1024));
        }
        let (point, next) = table.around_index(LogIndex(300)).unwrap();
        assert_eq!((point.index, next.unwrap().index), (LogIndex(256), LogIndex(512)));
        let (point, _) = table.around_offset(PhysicalOffset(4096 + 255 * 1024 + 5)).unwrap();
        assert_eq!(point.index, LogIndex(0));
        table.set_verified(PhysicalOffset(4096 + 256 * 1024));
        table.cut(PhysicalOffset(4096 + 300 * 1024));
        let (point, next) = table.around_index(LogIndex(900)).unwrap();
        assert_eq!((point.index, point.verified, next), (LogIndex(256), false, None));
    }
}
