#[derive(Clone, Copy, Debug)]
pub(crate) struct Row;
impl Row {
    pub(crate) fn in_flight(&self) -> u64 {
        0
    }
    pub(crate) fn connections(&self) -> u64 {
        0
    }
}
