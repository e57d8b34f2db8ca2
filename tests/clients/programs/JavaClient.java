// Asks with a Java client that all threads share: HttpURLConnection if STYLE=url, otherwise java.net.http.HttpClient.

import java.io.FileInputStream;
import java.io.IOException;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import java.util.Arrays;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.stream.Collectors;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public class JavaClient {
    interface Ask {
        byte[] once() throws Exception;
    }

    static int tried = 0;
    static double longest = 0;
    static final Map<String, Integer> errors = new TreeMap<>();

    static synchronized void count(long began, String error) {
        tried += 1;
        longest = Math.max(longest, (System.nanoTime() - began) / 1e6);
        if (error != null) errors.merge(error.replaceAll("[\"\\\\\\p{Cntrl}]", " "), 1, Integer::sum);
    }

    static void rests(double seconds) {
        try {
            Thread.sleep((long) (seconds * 1000));
        } catch (InterruptedException over) {
            throw new IllegalStateException(over);
        }
    }

    static SSLContext trusting() throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null);
        try (FileInputStream file = new FileInputStream(System.getenv("CA_FILE"))) {
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        return context;
    }

    static Ask byClient(URI url, byte[] body, String version) throws Exception {
        HttpClient.Version which = version.equals("2") ? HttpClient.Version.HTTP_2 : HttpClient.Version.HTTP_1_1;
        HttpClient client = HttpClient.newBuilder().version(which).sslContext(trusting()).build();
        HttpRequest.Builder request = HttpRequest.newBuilder(url).timeout(Duration.ofSeconds(30));
        HttpRequest made = body == null ? request.build() : request.POST(HttpRequest.BodyPublishers.ofByteArray(body)).build();
        return () -> {
            HttpResponse<byte[]> answer = client.send(made, HttpResponse.BodyHandlers.ofByteArray());
            if (answer.statusCode() != 200) throw new IOException("status " + answer.statusCode());
            if (url.getScheme().equals("https") && answer.version() != which) throw new IOException("it speaks " + answer.version());
            return answer.body();
        };
    }

    static Ask byUrl(URI url, byte[] body) {
        return () -> {
            HttpURLConnection connection = (HttpURLConnection) url.toURL().openConnection();
            connection.setReadTimeout(30_000);
            if (body != null) {
                connection.setDoOutput(true);
                connection.getOutputStream().write(body);
            }
            if (connection.getResponseCode() != 200) throw new IOException("status " + connection.getResponseCode());
            return connection.getInputStream().readAllBytes();
        };
    }

    public static void main(String[] words) throws Exception {
        int threads = Integer.parseInt(words[4]);
        double pause = Double.parseDouble(words[6]);
        byte[] body = words[1].equals("GET") ? null : new byte[Integer.parseInt(words[2])];
        if (body != null) new Random().nextBytes(body);
        URI url = URI.create(words[0]);
        Ask ask = "url".equals(System.getenv("STYLE")) ? byUrl(url, body) : byClient(url, body, words[3]);
        long end = System.nanoTime() + (long) (Double.parseDouble(words[5]) * 1e9);

        Runnable client = () -> {
            rests(Math.random() * pause);
            while (System.nanoTime() < end) {
                long began = System.nanoTime();
                String error = null;
                try {
                    byte[] said = ask.once();
                    if (body != null && !Arrays.equals(said, body)) error = said.length + " other bytes than were sent";
                } catch (Exception lost) {
                    error = lost.toString();
                }
                count(began, error);
                rests(pause > 0 ? pause : error == null ? 0 : 0.05);
            }
        };
        Thread[] running = new Thread[threads];
        for (int at = 0; at < threads; at++) (running[at] = new Thread(client)).start();
        for (Thread thread : running) thread.join();
        int lost = errors.values().stream().mapToInt(Integer::intValue).sum();
        String texts = errors.entrySet().stream().map(one -> '"' + one.getKey() + "\": " + one.getValue()).collect(Collectors.joining(", "));
        System.out.printf("{\"tried\": %d, \"lost\": %d, \"errors\": {%s}, \"longest_ms\": %.1f}%n", tried, lost, texts, longest);
        System.exit(0);
    }
}
