"""Draws a curve as SVG with logarithmic axes."""
from math import log10

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 360, 70, 50, 40


def plot(title: str, points: list[tuple[float, float, str]], x_label: str, y_label: str) -> str:
    """Returns the SVG; `points` are x, y and the label of each point."""
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    decades = range(int(log10(min(ys)) // 1), int(-(-log10(max(ys)) // 1)) + 1)

    def at(x, y):
        across = (log10(x) - log10(min(xs))) / (log10(max(xs)) - log10(min(xs)))
        up = (log10(y) - decades[0]) / (decades[-1] - decades[0])
        return LEFT + across * (WIDTH - LEFT - 90), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)

    def text(x, y, words, anchor="middle"):
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'

    shapes = [text(WIDTH / 2, 20, title), text(WIDTH / 2, HEIGHT - 10, x_label)]
    shapes.append(text(LEFT - 8, TOP - 12, y_label, "end"))
    for decade in decades:
        _, y = at(xs[0], 10**decade)
        shapes.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - 90}" stroke="#ddd"/>')
        shapes.append(text(LEFT - 8, y + 4, f"{10.0**decade:g}", "end"))
    curve = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y, _ in points)
    shapes.append(f'<polyline points="{curve}" fill="none" stroke="#1f6feb" stroke-width="2"/>')
    for i, (x, y, words) in enumerate(points):
        across, up = at(x, y)
        # The curve rises, so there is room below and to the right of it, and above and to the left.
        beside = text(across - 6, up - 8, words, "end") if i % 2 else text(across + 6, up + 16, words, "start")
        shapes += [f'<circle cx="{across:.1f}" cy="{up:.1f}" r="3.5" fill="#1f6feb"/>', beside,
                   text(across, HEIGHT - BOTTOM + 18, f"{x / 1e3:g} k" if x < 1e6 else f"{x / 1e6:g} M")]
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        '<rect width="100%" height="100%" fill="#fff"/>',
        '<g font-family="sans-serif" font-size="12" fill="#333">',
        *shapes,
        "</g>\n</svg>\n",
    ]
    return "\n".join(lines)
