-- wrk: post the file named by the environment variable BODY with the headers in HEADERS ("name: value" lines) until
-- REQUESTS answers have come, which one line "enough" says; at the end print one JSON line. For one thread (-t1).
local file = assert(io.open(os.getenv("BODY"), "rb"))
local wanted = tonumber(os.getenv("REQUESTS"))
local threads = {}
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
for name, value in os.getenv("HEADERS"):gmatch("([^:\n]+): ([^\n]*)") do wrk.headers[name] = value end

answers, refused = 0, 0

function setup(thread) table.insert(threads, thread) end

function response(status)
  answers = answers + 1
  if status ~= 200 then refused = refused + 1 end
  if answers == wanted then
    io.write("enough\n")
    io.flush()
  end
end

function done(summary, latency)
  local thread, errors = threads[1], summary.errors
  local answers, refused = thread:get("answers"), thread:get("refused")
  local lost = errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format(
    '{"requests": %d, "answered": %d, "not_answered": %d, "seconds": %.6f, "p50_ms": %.3f, "p95_ms": %.3f, "p99_ms": %.3f}\n',
    answers + lost, answers - refused, refused + lost, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
