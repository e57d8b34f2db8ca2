-- Asks for another of the 120 routes each time: 60 GETs and 60 POSTs.
local turn = 0
local json = { ["content-type"] = "application/json" }

request = function()
  turn = (turn + 7) % 120
  if turn < 60 then
    return wrk.format("GET", "/r" .. turn .. "/5?q=a")
  end
  return wrk.format("POST", "/r" .. (turn - 60), json, '{"name":"otter"}')
end
