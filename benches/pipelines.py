"""The toy pipelines as each engine writes them down."""

# The tables of all engines, with the tables from which each is made.
EIGHT = {
    "ingest": [], "caption": ["ingest"], "encode": ["caption"], "latents": ["ingest"], "train": ["encode", "latents"],
    "reconstruct": ["train", "latents"], "anomaly": ["reconstruct", "ingest"], "metrics": ["anomaly"],
}


def yaml(tables) -> str:
    return "tables:\n" + "".join(f"  {line}\n" for line in tables)


def parameters(train=1) -> str:
    return "".join(f"{name}: {train if name == 'train' else 1}\n" for name in EIGHT)


def eight_columns(name: str) -> list[str]:
    """Returns the columns that stage.py writes: those of the first input, the last one of each other input, and its own."""
    if not EIGHT[name]:
        return ["id", "x", name]
    first, *others = EIGHT[name]
    columns = eight_columns(first)
    return [*columns, *(other for other in others if other not in columns), name]


def eight_commands(python, train=1) -> str:
    def line(name, inputs):
        value = str(train if name == "train" else 1)
        words = " ".join(["stage.py", name, "{output}", value, *(f"{{{i}}}" for i in inputs)])
        output = ", ".join(f'{column}: "{"int64" if column == "id" else "float64"}?"' for column in eight_columns(name))
        with_ = f'run: "{python} {words}", files: [stage.py], output: {{ {output} }}, makes: table'
        return f"{name}: {{ stage: command, from: [{', '.join(inputs)}], with: {{ {with_} }} }}"
    return yaml(line(name, inputs) for name, inputs in EIGHT.items())


def eight_queries(train=1) -> str:
    def line(name, inputs):
        own = f"2 * x + {train if name == 'train' else 1} as {name}"
        if not inputs:
            source = "(select id, id * 0.5 as x from (select unnest(range(0, 1000)) as id))"
            return f'{name}: {{ stage: sql, with: {{ query: "select id, x, {own} from {source}" }} }}'
        first, *others = inputs
        columns = [f"{first}.{column}" for column in eight_columns(first)]
        new = [other for other in others if other not in eight_columns(first)]
        joins = "".join(f" join {other} on {first}.id = {other}.id" for other in new)
        select = ", ".join([*columns, *(f"{other}.{other}" for other in new), own.replace("x", f"{first}.x", 1)])
        query = f"select {select} from {first}{joins}"
        return f'{name}: {{ stage: sql, from: [{", ".join(inputs)}], with: {{ query: "{query}" }} }}'
    return yaml(line(name, inputs) for name, inputs in EIGHT.items())


def eight_dvc(python) -> str:
    def stage(name, inputs):
        files = [f"{i}.parquet" for i in inputs]
        words = " ".join([str(python), "stage.py", name, f"{name}.parquet", f"${{{name}}}", *files])
        needs = ["stage.py", *files]
        return f"  {name}:\n    cmd: {words}\n    deps: {needs}\n    params: [{name}]\n    outs: [{name}.parquet]\n"
    return "stages:\n" + "".join(stage(name, inputs) for name, inputs in EIGHT.items())


def eight_snakemake(python) -> str:
    def rule(name, inputs):
        files = [f"{i}.parquet" for i in inputs]
        words = " ".join([str(python), "stage.py", name, "{output}", "{params.p}", *files])
        needs = ", ".join(f'"{file}"' for file in ["stage.py", *files])
        makes = f'output: "{name}.parquet"\n    params: p=config["{name}"]\n    shell: "{words}"'
        return f"rule {name}:\n    input: {needs}\n    {makes}\n"
    head = 'configfile: "params.yaml"\nrule all:\n    input: "metrics.parquet"\n'
    return head + "".join(rule(name, inputs) for name, inputs in EIGHT.items())


READ = "rows: { stage: read, with: { path: rows.parquet, id: id } }"


def row_command(python) -> str:
    with_ = f'run: "{python} vlmdiff_rows.py", files: [vlmdiff_rows.py, work.py], columns: [text], output: {{ n: int64 }}'
    return yaml([READ, f"lengths: {{ stage: command, from: [rows], with: {{ {with_} }} }}"])


def row_query() -> str:
    return yaml([READ, row_wise("lengths", "rows", "select id, length(text) as n from rows")])


def row_wise(name: str, inputs: str, query: str) -> str:
    return f'{name}: {{ stage: sql, from: [{inputs}], with: {{ query: "{query}", makes: row_per_row }} }}'


EIGHT_ROW_WISE = yaml([
    READ,
    row_wise("lengths", "rows", "select id, length(text) as n from rows"),
    row_wise("upper", "rows", "select id, upper(text) as text from rows"),
    row_wise("doubled", "lengths", "select id, 2 * n as n from lengths"),
    row_wise("pairs", "lengths, upper", "select l.id, l.n, u.text from lengths l join upper u on l.id = u.id"),
    row_wise("scores", "doubled, pairs", "select d.id, d.n + p.n as score from doubled d join pairs p on d.id = p.id"),
    'counts: { stage: sql, from: [scores], with: { query: "select score, count(*) as n from scores group by score" } }',
    'total: { stage: sql, from: [counts], with: { query: "select sum(n) as n from counts" } }',
])


# The tables for engines whose stages are commands: tables.py makes each of them from a file of rows.
SEVEN = {
    "lengths": ["rows"], "upper": ["rows"], "doubled": ["lengths"], "pairs": ["lengths", "upper"], "scores": ["doubled", "pairs"],
    "counts": ["scores"], "total": ["counts"],
}


def seven_dvc(python) -> str:
    def stage(name, inputs):
        needs = ["tables.py", *(f"{i}.parquet" for i in inputs)]
        return f"  {name}:\n    cmd: {python} tables.py {name}\n    deps: {needs}\n    outs: [{name}.parquet]\n"
    return "stages:\n" + "".join(stage(name, inputs) for name, inputs in SEVEN.items())


def seven_snakemake(python) -> str:
    def rule(name, inputs):
        needs = ", ".join(f'"{file}"' for file in ["tables.py", *(f"{i}.parquet" for i in inputs)])
        return f'rule {name}:\n    input: {needs}\n    output: "{name}.parquet"\n    shell: "{python} tables.py {name}"\n'
    return 'rule all:\n    input: "total.parquet"\n' + "".join(rule(name, inputs) for name, inputs in SEVEN.items())


def many_commands(n) -> str:
    output = '{ id: "utf8?", text: "utf8?" }'
    run = lambda i: f"""[sh, -c, 'cp seed.parquet "$0"', "{{output}}", "{i}"]"""
    return yaml(f"t{i}: {{ stage: command, with: {{ run: {run(i)}, output: {output}, makes: table }} }}" for i in range(n))


def many_queries(n) -> str:
    return yaml(f't{i}: {{ stage: sql, with: {{ query: "select {i} as n" }} }}' for i in range(n))


def many_dvc(n) -> str:
    cmd = "cmd: echo ${item.i} > out${item.i}.txt\n    outs: ['out${item.i}.txt']"
    return f"stages:\n  s:\n    matrix:\n      i: {list(range(n))}\n    {cmd}\n"


def many_snakemake(n) -> str:
    head = f'rule all:\n    input: expand("out{{i}}.txt", i=range({n}))\n'
    return head + 'rule s:\n    output: "out{i}.txt"\n    shell: "echo {wildcards.i} > {output}"\n'


def one_dvc(cmd, deps, out) -> str:
    return f"stages:\n  only:\n    cmd: {cmd}\n    deps: {deps}\n    outs: [{out}]\n"


INGEST = yaml(["images: { stage: ingest, with: { dataset: folder, root: photographs, size: 16 } }"])
