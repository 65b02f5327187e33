//! The answers to SqlInfo and type info: the facts of the server and of its types.

use std::time::Duration;

use arrow_flight::{
    error::FlightError,
    sql::{
        Nullable, Searchable, SqlInfo, SqlNullOrdering, SqlSupportedCaseSensitivity, SqlSupportedTransaction,
        XdbcDataType,
        metadata::{SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder},
    },
};

/// The version of Arrow's format.
const ARROW_FORMAT: &str = "1.3";

/// Returns what the server can do; `time` is the limit of a statement.
pub(super) fn server(time: Duration) -> Result<SqlInfoData, FlightError> {
    let mut facts = SqlInfoDataBuilder::new();
    facts.append(SqlInfo::FlightSqlServerName, "vlmdiff");
    facts.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    facts.append(SqlInfo::FlightSqlServerArrowVersion, ARROW_FORMAT);
    facts.append(SqlInfo::FlightSqlServerReadOnly, true);
    facts.append(SqlInfo::FlightSqlServerSql, true);
    facts.append(SqlInfo::FlightSqlServerStatementTimeout, i32::try_from(time.as_millis()).unwrap_or(i32::MAX));
    facts.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    for can_not in [
        SqlInfo::FlightSqlServerSubstrait,
        SqlInfo::FlightSqlServerCancel,
        SqlInfo::FlightSqlServerBulkIngestion,
        SqlInfo::SqlDdlCatalog,
        SqlInfo::SqlDdlSchema,
        SqlInfo::SqlDdlTable,
        SqlInfo::SqlTransactionsSupported,
        SqlInfo::SqlSavepointsSupported,
        SqlInfo::SqlNamedParametersSupported,
    ] {
        facts.append(can_not, false);
    }
    for can in [
        SqlInfo::SqlAllTablesAreSelectable,
        SqlInfo::SqlSupportsColumnAliasing,
        SqlInfo::SqlNullPlusNullIsNull,
        SqlInfo::SqlSupportsTableCorrelationNames,
        SqlInfo::SqlSupportsExpressionsInOrderBy,
        SqlInfo::SqlSupportsOrderByUnrelated,
        SqlInfo::SqlSupportsNonNullableColumns,
        SqlInfo::SqlCatalogAtStart,
    ] {
        facts.append(can, true);
    }
    let (lower, exact) = (
        SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase,
        SqlSupportedCaseSensitivity::SqlCaseSensitivityUnknown,
    );
    facts.append(SqlInfo::SqlIdentifierCase, lower as i64);
    facts.append(SqlInfo::SqlQuotedIdentifierCase, exact as i64);
    facts.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    facts.append(SqlInfo::SqlSearchStringEscape, "\\");
    facts.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i64);
    facts.append(SqlInfo::SqlCatalogTerm, "catalogue");
    facts.append(SqlInfo::SqlSchemaTerm, "pipeline");
    facts.build()
}

/// Returns the types of columns, as far as ODBC and JDBC have them.
pub(super) fn types() -> Result<XdbcTypeInfoData, FlightError> {
    use XdbcDataType::{
        XdbcBigint, XdbcBit, XdbcDate, XdbcDouble, XdbcInteger, XdbcReal, XdbcSmallint, XdbcTimestamp, XdbcTinyint,
        XdbcVarbinary, XdbcVarchar,
    };
    /// The base of the number that says how large a value may be: digits or bits.
    const DECIMAL: Option<i32> = Some(10);
    const BINARY: Option<i32> = Some(2);
    let mut types = XdbcTypeInfoDataBuilder::new();
    for (name, of, size, base, quote) in [
        ("boolean", XdbcBit, Some(1), None, None),
        ("tinyint", XdbcTinyint, Some(3), DECIMAL, None),
        ("smallint", XdbcSmallint, Some(5), DECIMAL, None),
        ("integer", XdbcInteger, Some(10), DECIMAL, None),
        ("bigint", XdbcBigint, Some(19), DECIMAL, None),
        ("real", XdbcReal, Some(24), BINARY, None),
        ("double", XdbcDouble, Some(53), BINARY, None),
        ("varchar", XdbcVarchar, None, None, Some("'")),
        ("bytea", XdbcVarbinary, None, None, Some("'")),
        ("date", XdbcDate, Some(10), None, Some("'")),
        ("timestamp", XdbcTimestamp, Some(29), None, Some("'")),
    ] {
        types.append(XdbcTypeInfo {
            type_name: name.into(),
            data_type: of,
            sql_data_type: of,
            column_size: size,
            num_prec_radix: base,
            literal_prefix: quote.map(str::to_owned),
            literal_suffix: quote.map(str::to_owned),
            nullable: Nullable::NullabilityNullable,
            case_sensitive: of == XdbcVarchar,
            searchable: Searchable::Full,
            unsigned_attribute: base.map(|_| false),
            auto_increment: base.map(|_| false),
            local_type_name: Some(name.into()),
            ..XdbcTypeInfo::default()
        });
    }
    types.build()
}
