# Asks with Ruby's net/http. Each thread has its own started (persistent) connection.
require 'json'
require 'net/http'
require 'openssl'

url, method, size, _, threads, seconds, pause = ARGV
url, pause = URI(url), pause.to_f
body = method == 'GET' ? nil : Random.bytes(size.to_i)
now = -> { Process.clock_gettime(Process::CLOCK_MONOTONIC) }
finish, lock = now.call + seconds.to_f, Mutex.new
told = { tried: 0, lost: 0, errors: Hash.new(0), longest_ms: 0 }

client = lambda do
  http = Net::HTTP.new(url.host, url.port)
  http.use_ssl, http.ca_file, http.read_timeout = url.scheme == 'https', ENV['CA_FILE'], 30
  # Set to 60 s: after a pause longer than this limit, net/http opens a new connection without a look at the old one.
  http.keep_alive_timeout = 60
  sleep(rand * pause)
  while now.call < finish
    began, error = now.call, nil
    begin
      http.start unless http.started?
      request = (method == 'GET' ? Net::HTTP::Get : Net::HTTP::Post).new(url.path)
      request.body = body
      answer = http.request(request)
      error = "status #{answer.code}" if answer.code != '200'
      error = 'other bytes than were sent' if body && !error && answer.body.b != body
    rescue StandardError => lost
      error = "#{lost.class}: #{lost.message}"
      http.finish if http.started?
    end
    lock.synchronize do
      told[:tried] += 1
      told[:longest_ms] = [told[:longest_ms], (now.call - began) * 1000].max
      told[:errors][error] += 1 if error
    end
    sleep(pause.positive? ? pause : error ? 0.05 : 0)
  end
end

Array.new(threads.to_i) { Thread.new(&client) }.each(&:join)
told[:lost] = told[:errors].values.sum
puts JSON.generate(told)
