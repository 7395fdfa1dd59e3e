//! The log store as its users meet it: what was acknowledged is there after every kind of end.

mod crashes;
mod damage;
mod model;
mod operation;
