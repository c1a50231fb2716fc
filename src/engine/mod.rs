//! Durable execution: what a stage is ([`contract`]), what may happen next ([`decide`], pure), who
//! makes it happen ([`runner`]), and what people and triggers may ask for ([`commands`]).

pub mod commands;
pub mod contract;
