use crate::arguments::DataArguments;
use crate::output::Stop;
pub(crate) fn data(_arguments: &DataArguments) -> Result<(), Stop> { Ok(()) }
