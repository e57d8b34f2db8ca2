<?php
// Asks with PHP's curl. Instead of threads there are processes, each with its own handle. Each of them sends its line
// of results to the first process.

[, $url, $method, $size, $version, $threads, $seconds, $pause] = $argv;
$socket = $argv[8] ?? null;
$body = $method === 'GET' ? null : random_bytes((int) $size);
$end = microtime(true) + $seconds;

function client(): array
{
    global $url, $version, $pause, $socket, $body, $end;
    $handle = curl_init($url);
    curl_setopt_array($handle, [
        CURLOPT_RETURNTRANSFER => true, CURLOPT_TIMEOUT => 30, CURLOPT_CAINFO => getenv('CA_FILE'),
        CURLOPT_HTTP_VERSION => $version === '2' ? CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE : CURL_HTTP_VERSION_1_1,
    ] + ($socket ? [CURLOPT_UNIX_SOCKET_PATH => $socket] : []) + ($body === null ? [] : [CURLOPT_POSTFIELDS => $body]));
    $told = ['tried' => 0, 'lost' => 0, 'errors' => [], 'longest_ms' => 0];
    usleep((int) ($pause * 1e6 * lcg_value()));
    while (microtime(true) < $end) {
        $began = microtime(true);
        $said = curl_exec($handle);
        $status = curl_getinfo($handle, CURLINFO_RESPONSE_CODE);
        $error = match (true) {
            $said === false => curl_error($handle),
            $status !== 200 => "status $status",
            $body !== null && $said !== $body => 'other bytes than were sent',
            default => null,
        };
        $told['tried']++;
        $told['longest_ms'] = max($told['longest_ms'], (microtime(true) - $began) * 1000);
        if ($error !== null) {
            $told['lost']++;
            $told['errors'][$error] = ($told['errors'][$error] ?? 0) + 1;
        }
        usleep((int) ($pause > 0 ? $pause * 1e6 : ($error === null ? 0 : 50000)));
    }
    return $told;
}

$pipes = [];
for ($at = 0; $at < $threads; $at++) {
    [$ours, $theirs] = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);
    if (pcntl_fork() === 0) {
        fwrite($theirs, json_encode(client()) . "\n");
        exit(0);
    }
    fclose($theirs);
    stream_set_timeout($ours, (int) $seconds + 3600); // the default of 60 s is too short
    $pipes[] = $ours;
}
$sum = ['tried' => 0, 'lost' => 0, 'errors' => [], 'longest_ms' => 0];
foreach ($pipes as $pipe) {
    $told = json_decode(fgets($pipe), true);
    $sum['tried'] += $told['tried'];
    $sum['lost'] += $told['lost'];
    $sum['longest_ms'] = max($sum['longest_ms'], $told['longest_ms']);
    foreach ($told['errors'] as $text => $times) {
        $sum['errors'][$text] = ($sum['errors'][$text] ?? 0) + $times;
    }
}
$sum['errors'] = (object) $sum['errors'];
echo json_encode($sum), "\n";
