"""Two clients of Flight SQL for `tests/flight.rs`: ADBC's driver, which is written in Go, and `flightsql-dbapi`, over the C++ of pyarrow.

    clients.py CASE ADDRESS [ARGUMENTS]

A case ends with an exception if the server does not do what is expected of it.
"""
import pathlib
import sys
import threading
import time

import adbc_driver_flightsql.dbapi as adbc
import numpy
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
from adbc_driver_flightsql import DatabaseOptions
from flightsql import FlightSQLClient, TableRef
from flightsql.dbapi import ParameterRecordBuilder

BEARER = DatabaseOptions.AUTHORIZATION_HEADER.value
HEADER = DatabaseOptions.RPC_CALL_HEADER_PREFIX.value
ROOTS = DatabaseOptions.TLS_ROOT_CERTS.value
# More pairs than a minute suffices for.
ENDLESS = "select count(*) from generate_series(1, 1000000) a, generate_series(1, 1000000) b where a.value * b.value % 7 = 3"


def connect(address, scheme="grpc", **options):
    return adbc.connect(f"{scheme}://{address}", db_kwargs=options, autocommit=True)


def peer(address, **options):
    """Connects the second client."""
    host, port = address.rsplit(":", 1)
    return FlightSQLClient(host=host, port=int(port), **{"insecure": True, **options})


def fetch(client, info):
    return client.do_get(info.endpoints[0].ticket).read_all()


def rows(address, sql, parameters=None, **options):
    """Returns the rows of a statement by ADBC, as tuples."""
    with connect(address, **options) as connection, connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall()


def refused(work, *expected):
    """Checks that some work fails with a message that contains all of these."""
    try:
        work()
    except Exception as error:
        for text in expected:
            assert text in str(error), f"{text!r} is not in: {error}"
        return
    raise AssertionError(f"was not refused; expected: {expected}")


def queries(address, exported):
    """Statements with and without parameters, and tensors."""
    count = "select class, count(*) as n from images group by class order by class"
    assert rows(address, count) == [("gear", 7), ("tile", 7)]
    client = peer(address)
    assert fetch(client, client.execute(count)).to_pylist() == [{"class": "gear", "n": 7}, {"class": "tile", "n": 7}]
    # A ticket fetches the same rows again: the first time by the plan that told the schema, then by one of its own.
    info = client.execute(count)
    assert fetch(client, info) == fetch(client, info)
    assert rows(address, "select n from light.counts") == [(8,)]
    assert rows(address, "show tables")[:1] == [("light", "captions")]

    # Parameters, several times over one statement.
    sql = "select count(*) from images where class = ? and width > ? and split in (?, 'none')"
    with connect(address) as connection, connection.cursor() as cursor:
        for values, expected in [(("gear", 0, "train"), 4), (("gear", 0, "test"), 3), (("gear", 500.5, "test"), 0)]:
            cursor.execute(sql, values)
            assert cursor.fetchall() == [(expected,)], values
        cursor.execute("select cast($2 as text) || cast($1 as text), $3 + 1", ("a", "b", 2))
        assert cursor.fetchall() == [("ba", 3)]
        schema = cursor.adbc_prepare("select image_id from images where class = $1 and width < $2 limit $3")
        assert [str(field.type) for field in schema][::2] == ["string", "int64"], schema
        refused(lambda: cursor.execute(sql, ("gear",)), "1 × 1 values are given; the statement takes one row of 3")
        refused(lambda: cursor.execute("select ?, $1", (1, 2)), "not both forms")
    # This client sends parameters as unions.
    with client.prepare(sql) as statement:
        for values, expected in [(("tile", 0, "train"), 4), (("tile", 0, "test"), 3)]:
            assert fetch(client, statement.execute(ParameterRecordBuilder(values).build_record()))[0][0].as_py() == expected
        # It does not read that several rows are refused, and has no values then.
        refused(lambda: statement.execute(pyarrow.record_batch({"$1": ["a", "b"]})), "has parameters without a value: bind 3 first")
    refused(lambda: used_again(statement), "prepare it again")
    with client.prepare("select ?") as statement:
        refused(lambda: statement.execute(None), "the statement has a parameter without a value: bind 1 first")

    # Tensors come in their shape, by both clients.
    expected = pyarrow.parquet.read_table(exported)
    tensors = lambda table: table["pixels"].combine_chunks().to_numpy_ndarray()
    by_id = dict(zip(expected["image_id"].to_pylist(), tensors(expected)))
    sql = "select image_id, pixels, upper(class) as class from images order by image_id"
    with connect(address) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        tables = [cursor.fetch_arrow_table(), fetch(client, client.execute(sql))]
    for table in tables:
        of = table.schema.field("pixels").type
        assert isinstance(of, pyarrow.FixedShapeTensorType) and of.shape == [32, 32, 3], of
        assert of.value_type == pyarrow.uint8() and len(table) == 14
        for name, pixels in zip(table["image_id"].to_pylist(), tensors(table)):
            assert numpy.array_equal(by_id[name], pixels), name


def used_again(statement):
    """Executes a statement that was closed."""
    statement.closed = False
    statement.execute(pyarrow.record_batch({"$1": ["a"]}))


def refusals(address):
    """What is wrong is told with its place and what would work, and nothing is written."""
    client = peer(address)
    with connect(address) as connection, connection.cursor() as cursor:
        for sql, expected in [
            ("select 1,\n  'ä' + ) from images", "line 2, column 9"),
            ("select ? frm images limit", "line 1, column 14"),
            ("select * from imges", "there is no table `imges`; did you mean `images`?"),
            ("select colour from images", "there is no column `colour`"),
            ("select auroc(image_id, true) from images", "`score` is utf8, not a number"),
        ]:
            refused(lambda: cursor.execute(sql), expected)
        for sql in [
            "create table copied as select * from images",
            "insert into images select * from images",
            "drop table images",
            "delete from images",
            "copy (select 1) to 'written.csv'",
            "create external table passwords stored as csv location '/etc/passwd'",
            "set datafusion.runtime.memory_limit = '100G'",
        ]:
            refused(lambda: cursor.execute(sql), "only read here")
            refused(lambda: client.execute(sql), "only read here")
    refused(lambda: client.execute_update("delete from images"), "only read here")
    assert not pathlib.Path("written.csv").exists()
    assert rows(address, "select count(*) from images") == [(14,)]


def catalogue(address):
    """What BI tools ask for when they show what there is."""
    with connect(address) as connection:
        info = connection.adbc_get_info()
        assert info["vendor_name"] == "vlmdiff", info
        assert connection.adbc_get_table_types() == ["TABLE"]
        schema = connection.adbc_get_table_schema("images", db_schema_filter="light")
        assert isinstance(schema.field("pixels").type, pyarrow.FixedShapeTensorType), schema
        with connection.cursor() as cursor:
            schema = cursor.adbc_execute_schema("select upper(class) as kind, pixels from images")
            assert schema.names == ["kind", "pixels"] and schema.field("pixels").type.shape == [32, 32, 3], schema
        objects = connection.adbc_get_objects(depth="all").read_all().to_pylist()
        assert [one["catalog_name"] for one in objects] == ["vlmdiff"], objects
        schemas = objects[0]["catalog_db_schemas"]
        assert [one["db_schema_name"] for one in schemas] == ["light", "second"], schemas
        tables = {table["table_name"]: table for table in schemas[0]["db_schema_tables"]}
        assert {"images", "captions", "counts"} <= set(tables), tables.keys()
        columns = [column["column_name"] for column in tables["images"]["table_columns"]]
        assert columns[:2] == ["image_id", "class"] and "pixels" in columns, columns
        history = {table["table_name"] for table in schemas[1]["db_schema_tables"]}
        assert {"runs", "stage_runs", "errors", "paper_results", "images"} <= history, history

    client = peer(address)
    names = fetch(client, client.get_tables(db_schema_filter_pattern="light", table_name_filter_pattern="c%"))
    assert names["table_name"].to_pylist() == ["captions", "counts"], names
    one = fetch(client, client.get_tables(include_schema=True, table_name_filter_pattern="counts", db_schema_filter_pattern="light"))
    assert pyarrow.ipc.read_schema(pyarrow.py_buffer(one["table_schema"][0].as_py())).names == ["n"]
    assert fetch(client, client.get_catalogs()).to_pylist() == [{"catalog_name": "vlmdiff"}]
    assert fetch(client, client.get_db_schemas())["db_schema_name"].to_pylist() == ["light", "second"]
    facts = {row["info_name"]: row["value"] for row in fetch(client, client.get_sql_info([])).to_pylist()}
    assert (facts[0], facts[3], facts[504]) == ("vlmdiff", True, '"'), facts
    assert fetch(client, client.get_sql_info([3])).to_pylist() == [{"info_name": 3, "value": True}]
    types = fetch(client, client.get_xdbc_type_info(None))
    assert "varchar" in types["type_name"].to_pylist(), types
    table = TableRef(db_schema="light", table="images")
    for keys, first in [
        (client.get_primary_keys(table), "catalog_name"),
        (client.get_imported_keys(table), "pk_catalog_name"),
        (client.get_exported_keys(table), "pk_catalog_name"),
        (client.get_cross_reference(table, table), "pk_catalog_name"),
    ]:
        keys = fetch(client, keys)
        assert (len(keys), keys.column_names[0]) == (0, first), keys
    # A bare name is one of the pipeline that ran last, unless the client names another.
    assert rows(address, "select count(*) from captions", **{HEADER + "pipeline": "light"}) == [(8,)]
    refused(lambda: rows(address, "select count(*) from captions"), "there is light.captions")
    refused(lambda: rows(address, "select 1", **{HEADER + "pipeline": "third"}), "has no pipeline `third`; it has light")


def superset(address, token):
    """What Superset does, by SQLAlchemy."""
    import sqlalchemy

    with sqlalchemy.create_engine(f"datafusion://{address}?insecure=True&token={token}&feature-sqlalchemy-prepared-statements=on").connect() as connection:
        count = connection.execute(sqlalchemy.text("select class, count(*) from images where split = :split group by class order by 1"), {"split": "train"})
        assert [tuple(row) for row in count] == [("gear", 4), ("tile", 4)]
        inspector = sqlalchemy.inspect(connection)
        assert inspector.get_schema_names() == ["light"]
        assert "counts" in inspector.get_table_names("light")
        assert [column["name"] for column in inspector.get_columns("images", "light")][:2] == ["image_id", "class"]


def tokens(address, token):
    """A token is taken as such and as a password, by both clients, and nothing is answered without it."""
    # Names of three lengths, since the driver leaves out the padding of what it encodes.
    names = [{"username": name, "password": token} for name in ("any", "anyo", "anyon")]
    for options in [{BEARER: f"Bearer {token}"}, *names]:
        assert rows(address, "select count(*) from images", **options) == [(14,)], options.keys()
    for options in [{"token": token}, {"user": "anyone", "password": token}]:
        client = peer(address, **options)
        assert fetch(client, client.execute("select 1 as one")).to_pylist() == [{"one": 1}]
    wrong = token[:-1] + "?"
    for options in [{}, {BEARER: f"Bearer {wrong}"}, {"username": "anyone", "password": wrong}]:
        refused(lambda: rows(address, "select 1", **options), "carries no token, or another one")
    for options in [{}, {"token": wrong}, {"user": "anyone", "password": wrong}]:
        refused(lambda: peer(address, **options).get_catalogs(), "carries no token, or another one")


def certificate(folder):
    """Makes a certificate of this machine and its key, and one that signs nothing of it."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    for name in ("server", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        signed = builder.sign(key, hashes.SHA256())
        folder = pathlib.Path(folder)
        (folder / f"{name}.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{name}.key").write_bytes(pem)


def encrypted(address, folder):
    """Connections are encrypted, and are made only where the server's certificate is trusted."""
    own, other = (pathlib.Path(folder, f"{name}.pem").read_text() for name in ("server", "other"))
    assert rows(address, "select count(*) from images", scheme="grpc+tls", **{ROOTS: own}) == [(14,)]
    client = peer(address, insecure=False, tls_root_certs=own)
    assert fetch(client, client.execute("select 1 as one")).to_pylist() == [{"one": 1}]
    refused(lambda: rows(address, "select 1", scheme="grpc+tls", **{ROOTS: other}), "certificate")
    refused(lambda: peer(address, insecure=False, tls_root_certs=other).get_catalogs(), "")
    refused(lambda: rows(address, "select 1"), "")


def limits(address):
    """A statement that takes too much ends with an error, and the server goes on."""
    for sql in [
        "select length(string_agg(repeat('x', 1000), '')) from generate_series(1, 1000000)",
        "select count(*) from generate_series(1, 3000000) a join generate_series(1, 3000000) b using (value)",
    ]:
        refused(lambda: rows(address, sql), "the statement takes more than its 32 MiB of memory")
        assert rows(address, "select 1") == [(1,)]
    started = time.monotonic()
    refused(lambda: rows(address, ENDLESS), "the statement takes more than 3 s")
    assert 2.5 < time.monotonic() - started < 15
    assert rows(address, "select 1") == [(1,)]


def large(address):
    """Results larger than a statement's memory are sent as they are computed, in messages that clients take."""
    with connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("select i.pixels from images i, generate_series(1, 12000)")
        rows, size, widest = 0, 0, 0
        for batch in cursor.fetch_record_batch():
            rows, size, widest = rows + len(batch), size + batch.nbytes, max(widest, batch.nbytes)
        assert rows == 14 * 12000 and size > 500_000_000 and widest < 4 << 20, (rows, size, widest)
        # A sort that does not fit goes on in files.
        cursor.execute("select value, repeat('x', 100) as text from generate_series(1, 1000000) order by value desc")
        last = 1_000_001
        for batch in cursor.fetch_record_batch():
            values = batch["value"].to_numpy()
            assert values[0] == last - 1 and (numpy.diff(values) == -1).all()
            last = values[-1]
        assert last == 1


def fresh(address):
    """A connection sees what is published later."""
    with connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from images")
        assert cursor.fetchall() == [(14,)]
        refused(lambda: cursor.execute("select * from second.images"), "there is no pipeline `second`")
        print("before", flush=True)
        sys.stdin.readline()
        cursor.execute("select count(*) from light.images")
        assert cursor.fetchall() == [(15,)]
        cursor.execute("select count(*) from second.images")
        assert cursor.fetchall() == [(15,)]


def endless(address):
    """Runs a statement that does not end."""
    with connect(address) as connection, connection.cursor() as cursor:
        print("running", flush=True)
        cursor.execute(ENDLESS)
        cursor.fetchall()


def cancelled(address):
    """A client that cancels its statement leaves its place to others."""
    with connect(address) as connection, connection.cursor() as cursor:
        thread = threading.Timer(1, cursor.adbc_cancel)
        thread.start()
        refused(lambda: (cursor.execute(ENDLESS), cursor.fetchall()), "")
        thread.join()
    one(address)


def untaken(address):
    """Takes none of a large result for longer than the server waits, and is told so."""
    with connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("select repeat('x', 1000) as text from generate_series(1, 1000000)")
        reader = cursor.fetch_record_batch()
        print("begun", flush=True)
        sys.stdin.readline()
        refused(lambda: sum(len(batch) for batch in reader), "the client took no rows for 2 s")


def trickle(address):
    """Takes a large result bit by bit until it is told to stop, and so keeps its place."""
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    with connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("select repeat('x', 1000) as text from generate_series(1, 1000000)")
        reader = cursor.fetch_record_batch()
        print("begun", flush=True)
        while not stop.wait(0.1):
            reader.read_next_batch()


def busy(address):
    """Waits for its turn until the server sends it away."""
    client = peer(address)
    refused(lambda: fetch(client, client.execute(ENDLESS)), "as many as may at once")


def elsewhere(address):
    """The store is on S3."""
    assert rows(address, "select count(*) from images where array_max(pixels) > 0") == [(14,)]
    assert rows(address, "select status from runs") == [("done",)]


def slow(address):
    """Takes a large result slowly, and says when it has begun."""
    client = peer(address)
    reader = client.do_get(client.execute("select repeat('x', 1000) as text from generate_series(1, 100000)").endpoints[0].ticket)
    rows = len(reader.read_chunk().data)
    print("begun", flush=True)
    time.sleep(1)
    rows += len(reader.read_all())
    assert rows == 100000, rows


def traced(address):
    """A statement that ends well, and one that does not."""
    assert rows(address, "select count(*) as traced from images") == [(14,)]
    refused(lambda: rows(address, "select 1 / (n - n) from counts"), "ivide by zero")


def read(address):
    """Reads light columns and images."""
    assert len(rows(address, "select image_id, class, width from images")) == len(rows(address, "select * from images")) == 14


def kept(address, limit):
    """Reads them again, without the parts of the store."""
    light = lambda: sorted(rows(address, "select class, count(*), max(width) from images where class <> 'none' group by class"))
    if limit == "0":
        refused(light, "is missing")
    else:
        assert [row[:2] for row in light()] == [("gear", 7), ("tile", 7)]
    refused(lambda: rows(address, "select pixels from images"), "is missing")
    refused(lambda: rows(address, "select image_id, label from images"), "is missing")


def one(address):
    """Runs a statement that ends at once."""
    assert rows(address, "select 1") == [(1,)]


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
