//! A dataflow engine for visual anomaly detection.
//!
//! Six concepts carry it:
//!
//! | concept | what it is | identity | lifetime | file |
//! |---|---|---|---|---|
//! | table | rows of Arrow columns that a pipeline declares, made by one stage from tables above it | pipeline and name | while the pipeline declares it | `engine/pipeline/table.rs` |
//! | stage | a kind of computation with its parameters | its fingerprint: name, revision, parameters, contents of files, output schema | the program | `engine/stage/contract.rs` |
//! | row key | everything that can change one row | a digest over the fingerprint, the row's id and what is read of it | while a part holds the row | `engine/identity.rs` |
//! | part | an immutable Parquet file of rows and their keys | the digest of its bytes | until `gc` finds that nothing reaches it | `engine/store/parquet.rs` |
//! | version | a published state of a table: a manifest of parts and the rows in them | pipeline, table, number | while it is current, tagged or of one of the last runs | `engine/store/published.rs` |
//! | run | one execution of a pipeline, with the log of its events | an id later than all before it, or a tag | the log stays | `engine/run/driver.rs` |
//!
//! The folders, each of which imports only those above it in this list:
//!
//! | folder | content |
//! |---|---|
//! | [`vlmdiff_metrics`], [`vision`], [`datasets`] | metrics by several protocols, in a crate of their own; pictures; dataset layouts and the generator. No tensors |
//! | [`models`], [`diffusion`] | networks under their published names; schedules, samplers, losses. No engine |
//! | [`features`] | extractors, which map images to feature maps; the features of patches; the anomaly map between two images |
//! | [`training`] | the training loop, optimisers, and what a training keeps. No engine |
//! | [`methods`] | methods that are fitted on normal images: what each keeps or learns, and how it detects by it. No engine |
//! | [`engine`] | pipelines, plans, runs, stages, the store: Arrow, not images |
//! | [`tables`] | the columns that stages, SQL and the report share, and the roles of tables by their columns |
//! | `published` | published weights, as a pipeline names them |
//! | [`captioners`] | sources of captions, of which the stage `caption` is made |
//! | [`query`] | published tables as a DataFusion session |
//! | [`exchange`] | tables in the formats of other programs, written and read |
//! | [`telemetry`] | what runs and queries tell other programs: traces, lineage, metrics |
//! | [`mod@stages`] | the stages: the only place where engine and networks meet |
//! | `cluster` | tasks on other machines, by Ballista |
//! | [`inspect`], [`serving`] | new photographs through the tables of a pipeline that has run; the same over HTTP |
//! | [`flight`] | SQL for other programs, over Arrow Flight |
//! | [`report`] | the HTML page |
//! | [`driver`] | what the command line and the Python package do alike: opening, running, judging, progress |
//! | [`cli`] | commands, exit codes |

pub mod captioners;
pub mod cli;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod datasets;
pub mod diffusion;
pub mod driver;
pub mod engine;
pub mod exchange;
pub mod features;
pub mod flight;
pub mod inspect;
pub mod methods;
pub mod models;
mod published;
pub mod query;
pub mod report;
pub mod serving;
pub mod stages;
pub mod tables;
pub mod telemetry;
pub mod training;
pub mod vision;
