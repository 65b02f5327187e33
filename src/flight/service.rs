//! The requests of Flight SQL.

use std::pin::Pin;

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
    error::ArrowError,
    ipc::writer::IpcWriteOptions,
};
use arrow_flight::{
    Action, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, IpcMessage,
    SchemaAsIpc, Ticket,
    decode::FlightRecordBatchStream,
    encode::FlightDataEncoderBuilder,
    error::FlightError,
    flight_service_server::FlightService,
    sql::{
        ActionBeginSavepointRequest, ActionBeginSavepointResult, ActionBeginTransactionRequest,
        ActionBeginTransactionResult, ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
        ActionCreatePreparedStatementResult, Any, Command, CommandGetCatalogs, CommandGetCrossReference,
        CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys, CommandGetPrimaryKeys, CommandGetSqlInfo,
        CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo, CommandPreparedStatementQuery,
        CommandPreparedStatementUpdate, CommandStatementIngest, CommandStatementQuery, CommandStatementUpdate,
        DoPutPreparedStatementResult, ProstMessageExt, SqlInfo, TicketStatementQuery,
        metadata::{SqlInfoData, XdbcTypeInfoData},
        server::{FlightSqlService, PeekableFlightDataStream},
    },
};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use prost::Message;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue};

use super::{
    catalogue, facts,
    limits::Limits,
    prepared::{Prepared, Statement},
    refusal::{only_reads, status, unexpected},
    running::Runner,
};
use crate::{
    engine::{Result as EngineResult, store::Store},
    serving::password,
};

/// The header by which a client names the pipeline to which bare table names refer.
const PIPELINE: &str = "pipeline";

/// The token that a client is given if the server has none.
const NO_TOKEN: &str = "none";

type Messages = Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

/// Answers requests. Those without the token do not come here.
pub(super) struct Service {
    pipeline: Option<String>,
    runner: Runner,
    prepared: Prepared,
    server: SqlInfoData,
    types: XdbcTypeInfoData,
}

impl Service {
    pub(super) fn new(store: &Store, pipeline: Option<String>, limits: Limits) -> EngineResult<Self> {
        Ok(Self {
            pipeline,
            runner: Runner::new(store, limits),
            prepared: Prepared::default(),
            server: facts::server(limits.time).map_err(catalogue::flight_error)?,
            types: facts::types().map_err(catalogue::flight_error)?,
        })
    }

    /// Returns the pipeline to which bare table names of a request refer.
    fn pipeline<T>(&self, request: &Request<T>) -> Result<Option<String>, Status> {
        let Some(value) = request.metadata().get(PIPELINE) else { return Ok(self.pipeline.clone()) };
        let unreadable = |_| Status::invalid_argument(format!("the header `{PIPELINE}` is no text"));
        value.to_str().map(|name| Some(name.to_owned())).map_err(unreadable)
    }
}

/// Says how a result is fetched: by a ticket, from this server.
fn info(schema: &Schema, ticket: Any, request: Request<FlightDescriptor>) -> Answer<FlightInfo> {
    let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket.encode_to_vec()));
    let info = FlightInfo::new().try_with_schema(schema).map_err(unexpected)?;
    Ok(Response::new(info.with_endpoint(endpoint).with_descriptor(request.into_inner())))
}

/// Sends a batch.
fn one(batch: Result<RecordBatch, FlightError>) -> Answer<Messages> {
    let batch = batch?;
    let schema = batch.schema();
    let messages = FlightDataEncoderBuilder::new().with_schema(schema).build(futures::stream::iter([Ok(batch)]));
    Ok(Response::new(Box::pin(messages.map_err(Status::from))))
}

fn told(batch: EngineResult<RecordBatch>) -> Answer<Messages> {
    one(Ok(batch.map_err(|error| status(&error))?))
}

/// Sends a list of keys, which is empty.
fn no_keys(schema: SchemaRef) -> Answer<Messages> {
    one(Ok(RecordBatch::new_empty(schema)))
}

fn encoded(schema: &Schema) -> Result<Bytes, Status> {
    let options = IpcWriteOptions::default();
    let message: Result<IpcMessage, ArrowError> = SchemaAsIpc::new(schema, &options).try_into();
    message.map(|IpcMessage(bytes)| bytes).map_err(unexpected)
}

/// Reads a row of parameters; `None` if there is no row.
async fn parameters(stream: PeekableFlightDataStream) -> Result<Option<RecordBatch>, Status> {
    let mut batches = FlightRecordBatchStream::new_from_flight_data(stream.map_err(FlightError::from));
    let mut found = None;
    while let Some(batch) = batches.try_next().await? {
        if batch.num_rows() > 1 || found.is_some() && batch.num_rows() > 0 {
            return Err(Status::invalid_argument(
                "several rows of parameters are given, and a query takes one; run it once for each row",
            ));
        }
        if batch.num_rows() == 1 {
            found = Some(batch);
        }
    }
    Ok(found)
}

#[tonic::async_trait]
impl FlightSqlService for Service {
    type FlightService = Self;

    /// Gives the token to a client that has sent it as a password, for the requests that follow.
    async fn do_handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Answer<Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>> {
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let token = password(header).unwrap_or_else(|| NO_TOKEN.into());
        let bearer = MetadataValue::try_from([b"Bearer ", token.as_slice()].concat())
            .map_err(|_| Status::invalid_argument("the password has characters that no header takes"))?;
        let answer = HandshakeResponse { protocol_version: 0, payload: token.into() };
        let mut response: Response<Pin<Box<dyn Stream<Item = _> + Send>>> =
            Response::new(Box::pin(futures::stream::iter([Ok(answer)])));
        response.metadata_mut().insert("authorization", bearer);
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let statement = Statement::new(query.query, self.pipeline(&request)?);
        let ticket = TicketStatementQuery { statement_handle: statement.ticket() };
        let schema = self.runner.schema(statement).await?;
        info(&schema, ticket.as_any(), request)
    }

    async fn do_get_statement(&self, ticket: TicketStatementQuery, request: Request<Ticket>) -> Answer<Messages> {
        let statement = Statement::of_ticket(&ticket.statement_handle, self.pipeline(&request)?)
            .ok_or_else(|| Status::invalid_argument("the ticket is none of this server"))?;
        let messages = self.runner.messages(statement).await?;
        Ok(Response::new(Box::pin(messages)))
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let statement = Statement::new(query.query, self.pipeline(&request)?);
        let (parameters, schema) = self.runner.described(statement.clone()).await?;
        Ok(ActionCreatePreparedStatementResult {
            dataset_schema: encoded(&schema)?,
            parameter_schema: encoded(&parameters)?,
            prepared_statement_handle: self.prepared.keep(statement),
        })
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let handle = query.prepared_statement_handle;
        // Not every client notices that values were refused, and none may get the rows of the values before.
        self.prepared.bind(&handle, None)?;
        self.prepared.bind(&handle, parameters(request.into_inner()).await?)?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) })
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let statement = self.prepared.get(&query.prepared_statement_handle)?;
        let schema = self.runner.schema(statement).await?;
        info(&schema, query.as_any(), request)
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        _: Request<Ticket>,
    ) -> Answer<Messages> {
        let statement = self.prepared.get(&query.prepared_statement_handle)?;
        Ok(Response::new(Box::pin(self.runner.messages(statement).await?)))
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        _: Request<Action>,
    ) -> Result<(), Status> {
        self.prepared.close(&query.prepared_statement_handle);
        Ok(())
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        info(&query.into_builder().schema(), query.as_any(), request)
    }

    async fn do_get_catalogs(&self, query: CommandGetCatalogs, _: Request<Ticket>) -> Answer<Messages> {
        told(catalogue::catalogs(query))
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        info(&query.clone().into_builder().schema(), query.as_any(), request)
    }

    async fn do_get_schemas(&self, query: CommandGetDbSchemas, _: Request<Ticket>) -> Answer<Messages> {
        let bounds = self.runner.limits().bounds;
        let listed = move |store| async move { catalogue::schemas(&store, bounds, query).await };
        one(Ok(self.runner.work(listed).await?))
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        info(&query.clone().into_builder().schema(), query.as_any(), request)
    }

    async fn do_get_tables(&self, query: CommandGetTables, request: Request<Ticket>) -> Answer<Messages> {
        let (pipeline, bounds) = (self.pipeline(&request)?, self.runner.limits().bounds);
        let listed = move |store| async move { catalogue::tables(&store, pipeline.as_deref(), bounds, query).await };
        one(Ok(self.runner.work(listed).await?))
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        info(&query.into_builder().schema(), query.as_any(), request)
    }

    async fn do_get_table_types(&self, query: CommandGetTableTypes, _: Request<Ticket>) -> Answer<Messages> {
        told(catalogue::table_types(query))
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        info(&self.server.schema(), query.as_any(), request)
    }

    async fn do_get_sql_info(&self, query: CommandGetSqlInfo, _: Request<Ticket>) -> Answer<Messages> {
        one(query.into_builder(&self.server).build())
    }

    async fn get_flight_info_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        info(&self.types.schema(), query.as_any(), request)
    }

    async fn do_get_xdbc_type_info(&self, query: CommandGetXdbcTypeInfo, _: Request<Ticket>) -> Answer<Messages> {
        one(query.into_builder(&self.types).build())
    }

    async fn get_flight_info_primary_keys(
        &self,
        query: CommandGetPrimaryKeys,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        info(&catalogue::primary_keys(), query.as_any(), request)
    }

    async fn do_get_primary_keys(&self, _: CommandGetPrimaryKeys, _: Request<Ticket>) -> Answer<Messages> {
        no_keys(catalogue::primary_keys())
    }

    async fn get_flight_info_exported_keys(
        &self,
        query: CommandGetExportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        info(&catalogue::foreign_keys(), query.as_any(), request)
    }

    async fn do_get_exported_keys(&self, _: CommandGetExportedKeys, _: Request<Ticket>) -> Answer<Messages> {
        no_keys(catalogue::foreign_keys())
    }

    async fn get_flight_info_imported_keys(
        &self,
        query: CommandGetImportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        info(&catalogue::foreign_keys(), query.as_any(), request)
    }

    async fn do_get_imported_keys(&self, _: CommandGetImportedKeys, _: Request<Ticket>) -> Answer<Messages> {
        no_keys(catalogue::foreign_keys())
    }

    async fn get_flight_info_cross_reference(
        &self,
        query: CommandGetCrossReference,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        info(&catalogue::foreign_keys(), query.as_any(), request)
    }

    async fn do_get_cross_reference(&self, _: CommandGetCrossReference, _: Request<Ticket>) -> Answer<Messages> {
        no_keys(catalogue::foreign_keys())
    }

    async fn do_put_statement_update(
        &self,
        _: CommandStatementUpdate,
        _: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        Err(only_reads("the statement is sent as one that writes"))
    }

    async fn do_put_prepared_statement_update(
        &self,
        _: CommandPreparedStatementUpdate,
        _: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        Err(only_reads("the statement is sent as one that writes"))
    }

    async fn do_put_statement_ingest(
        &self,
        _: CommandStatementIngest,
        _: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        Err(only_reads("rows are sent to be written"))
    }

    async fn do_action_begin_transaction(
        &self,
        _: ActionBeginTransactionRequest,
        _: Request<Action>,
    ) -> Result<ActionBeginTransactionResult, Status> {
        Err(only_reads("there are no transactions"))
    }

    async fn do_action_begin_savepoint(
        &self,
        _: ActionBeginSavepointRequest,
        _: Request<Action>,
    ) -> Result<ActionBeginSavepointResult, Status> {
        Err(only_reads("there are no savepoints"))
    }

    /// Refuses further actions in the way that clients expect of a server that does not know them, such as the one by which
    /// some close their connection.
    async fn do_action_fallback(&self, request: Request<Action>) -> Answer<<Self as FlightService>::DoActionStream> {
        Err(Status::unimplemented(format!("there is no action {}", request.get_ref().r#type)))
    }

    async fn get_flight_info_fallback(&self, command: Command, _: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        Err(Status::unimplemented(format!("there is no answer to {}; SQL would work", command.type_url())))
    }

    /// Is called by nobody: what the server says about itself is known when it starts.
    async fn register_sql_info(&self, _: i32, _: &SqlInfo) {}
}
