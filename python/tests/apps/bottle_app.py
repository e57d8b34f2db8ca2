"""A Bottle app."""

from bottle import Bottle, request, response, static_file

app = Bottle()


@app.get("/hello/<name>")
def hello(name):
    response.set_cookie("seen", name, path="/")
    return {"name": name, "query": request.query.getunicode("q")}


@app.post("/form")
def form():
    return {"name": request.forms.getunicode("name"), "file": request.files["file"].file.read().decode()}


@app.post("/json")
def json():
    return request.json


@app.get("/file")
def file():
    return static_file(__file__.rpartition("/")[2], root=__file__.rpartition("/")[0])


@app.get("/items")
def items():
    yield "one "
    yield "two"
