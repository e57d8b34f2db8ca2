-- Posts one item to the FastAPI app.
wrk.method = "POST"
wrk.body = '{"id":1,"name":"otter","price":1.5,"tags":["a","b"]}'
wrk.headers["content-type"] = "application/json"
